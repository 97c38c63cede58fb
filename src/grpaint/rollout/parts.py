"""A rollout made in parts, so that one can be scored while the next is sampled."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from grpaint.rollout.rollout import Roller, Rollout, Score, Transition


class Parts:
    """What a roller samples, ``count`` runs of prompts one after the other; :meth:`joined` makes them one again.

    Rows draw the noise that they would have drawn undivided; what else may differ is rounding, by the batch's shape.
    """

    def __init__(self, roller: Roller, count: int, score: Score | None = None) -> None:
        self._roller, self._score = roller, score
        self._numbers = torch.arange(len(roller.prompts)).tensor_split(count)

    def __iter__(self) -> Iterator[Rollout]:
        for numbers in self._numbers:
            with torch.no_grad():
                self._roller.enter(numbers)
                part = self._roller.go(self._score)
            yield part

    def joined(self, parts: Sequence[Rollout]) -> Rollout:
        """All rows in the order of their parts, each step's actions together."""
        group = torch.cat([part.group for part in parts])
        starts = torch.tensor([0, *(len(part.group) for part in parts)]).cumsum(0).tolist()
        actions: dict[int, list[Transition]] = {}
        for start, part in zip(starts, parts, strict=False):
            for action in part.transitions:
                actions.setdefault(action.step, []).append(dataclasses.replace(action, rows=action.rows + start))
        return dataclasses.replace(
            parts[0],
            group=group,
            cond=self._roller.cond.rows(group),
            transitions=tuple(_together(actions[step]) for step in sorted(actions)),
            x0=torch.cat([part.x0 for part in parts]),
            previews={step: torch.cat([part.previews[step] for part in parts]) for step in parts[0].previews},
            references=torch.cat([part.references for part in parts]),
        )


def _together(actions: Sequence[Transition]) -> Transition:
    return dataclasses.replace(
        actions[0],
        rows=torch.cat([action.rows for action in actions]),
        x=torch.cat([action.x for action in actions]),
        x_next=torch.cat([action.x_next for action in actions]),
        logp=torch.cat([action.logp for action in actions]),
        mean=torch.cat([action.mean for action in actions]),
    )
