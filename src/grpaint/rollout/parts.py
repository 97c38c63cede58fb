"""A rollout sampled in parts, so that one part can be scored while the next is sampled."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from grpaint.rollout.rollout import Roller, Rollout, Score, Transition


class RolloutParts:
    """Sample a rollout as ``count`` runs of consecutive prompts; :meth:`join` combines them into one rollout.

    Every row gets the same noise as in an undivided rollout; only rounding may differ, as batch shapes do.
    """

    def __init__(self, roller: Roller, count: int, score: Score | None = None) -> None:
        self._roller, self._score = roller, score
        self._prompt_numbers = roller.prompt_numbers.tensor_split(min(count, len(roller.prompt_numbers)))

    def __iter__(self) -> Iterator[Rollout]:
        for prompt_numbers in self._prompt_numbers:
            with torch.no_grad():
                self._roller.start(prompt_numbers)
                part = self._roller.run(self._score)
            yield part

    def join(self, parts: Sequence[Rollout]) -> Rollout:
        """Concatenate the rows of all parts in order, with one transition per step."""
        group = torch.cat([part.group for part in parts])
        starts = torch.tensor([0, *(len(part.group) for part in parts)]).cumsum(0).tolist()
        by_step: dict[int, list[Transition]] = {}
        for start, part in zip(starts, parts, strict=False):
            for transition in part.transitions:
                shifted = dataclasses.replace(transition, rows=transition.rows + start)
                by_step.setdefault(transition.step, []).append(shifted)
        return dataclasses.replace(
            parts[0],
            group=group,
            cond=self._roller.cond(group),
            transitions=tuple(_concatenate(by_step[step]) for step in sorted(by_step)),
            x0=torch.cat([part.x0 for part in parts]),
            previews={step: torch.cat([part.previews[step] for part in parts]) for step in parts[0].previews},
            references=torch.cat([part.references for part in parts]),
            count=-1,
            total=-1,
            actions=-1,
        )


def _concatenate(transitions: Sequence[Transition]) -> Transition:
    return dataclasses.replace(
        transitions[0],
        rows=torch.cat([transition.rows for transition in transitions]),
        x=torch.cat([transition.x for transition in transitions]),
        x_next=torch.cat([transition.x_next for transition in transitions]),
        logp=torch.cat([transition.logp for transition in transitions]),
        mean=torch.cat([transition.mean for transition in transitions]),
    )
