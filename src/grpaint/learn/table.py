"""Score images with rewards, check the scores, and hold them in a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt, Reward
from grpaint.core.reward import RewardBase
from grpaint.core.text import printable
from grpaint.core.user_code import user_code
from grpaint.learn.external_rewards import score_all
from grpaint.learn.node_rewards import NodeRewards, Sharing
from grpaint.parallel.world import World

MOST_TEXT = 200  # characters of a prompt in an error


@dataclass(frozen=True)
class RewardTable:
    """Scores by reward name, each ``[b]`` or ``[b, steps]``, with the rewards' ``weights``.

    ``applies`` marks the rows that count for a reward; a reward absent from it applies to every row.
    """

    columns: Mapping[str, Float[Tensor, "b *steps"]]
    weights: Mapping[str, float] = field(default_factory=dict)
    applies: Mapping[str, Bool[Tensor, " b"]] = field(default_factory=dict)

    def weight(self, name: str) -> float:
        """Return a reward's weight, 1 by default."""
        return self.weights.get(name, 1.0)

    def rows(self, index: Int[Tensor, " k"]) -> "RewardTable":
        """Select rows."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return RewardTable(columns, self.weights, {name: mask[index] for name, mask in self.applies.items()})

    @classmethod
    def join(cls, parts: "Sequence[RewardTable]") -> "RewardTable":
        """Concatenate the rows of tables of the same rewards."""
        first = parts[0]
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in first.columns}
        applies = {name: torch.cat([part.applies[name] for part in parts]) for name in first.applies}
        return cls(columns, first.weights, applies)

    def scored(self) -> Bool[Tensor, " b"]:
        """Return the rows to which a reward applies whose weight is not 0."""
        rows = next(iter(self.columns.values())).shape[:1]
        masks = [
            self.applies.get(name, torch.ones(rows, dtype=torch.bool)) for name in self.columns if self.weight(name)
        ]
        return torch.stack(masks).any(0) if masks else torch.zeros(rows, dtype=torch.bool)

    def total(self) -> Float[Tensor, "b *steps"]:
        """Return the weighted sum of raw scores (Flow-GRPO's aggregate); a reward counts only in rows it applies to."""
        parts = []
        for name, column in self.columns.items():
            mask = self.applies.get(name)
            parts.append(self.weight(name) * (column if mask is None else torch.where(mask, column, 0.0)))
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class RewardSet:
    """Rewards and their weights, by name, and which of them the processes of a machine share."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    sharing: Sharing = field(default_factory=Sharing)

    def among(self, world: World, prompts: Sequence[Prompt]) -> "RewardSet":
        """Return the same rewards for the processes of ``world``, of which each has some rows of ``prompts``.

        Each calls :meth:`score` as often as it likes, and then :meth:`finish` once.
        """
        return replace(self, sharing=replace(self.sharing, world=world, prompts=prompts))

    def score(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[Prompt],
        references: Bool[Tensor, " b"] | None = None,
    ) -> RewardTable:
        """Score images with every reward; external rewards run concurrently.

        ``references`` ``[b]`` marks the rows that began at a reference image: a reward whose ``needs_reference`` is
        true applies to these only (None: to all). A ``partial`` reward applies to the rows that it has scored.

        Raises:
            RewardError: if a reward raises, or returns NaN, infinity or the wrong number of scores; the message names
                the reward and the first prompts. No score is replaced by zero.
        """
        columns = NodeRewards(self.rewards, _score_all, self.sharing).score(images, prompts)
        applies = {}
        if references is not None:
            applies = {name: references for name, r in self.rewards.items() if getattr(r, "needs_reference", False)}
        for name in [name for name, reward in self.rewards.items() if getattr(reward, "partial", False)]:
            scored = ~columns[name].isnan()
            applies[name] = scored & applies[name] if name in applies else scored
            columns[name] = columns[name].where(scored, 0.0)  # of rows that are left out, whatever it is
        return RewardTable(columns, self.weights, applies)

    def finish(self) -> None:
        """Score for the other processes of this machine until all call this, if they share a reward."""
        NodeRewards(self.rewards, _score_all, self.sharing).finish()

    def truncated(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the share of captions that each reward with a text limit truncates."""
        counts = {name: r.truncated(prompts) for name, r in self.rewards.items() if isinstance(r, RewardBase)}
        return {name: count / len(prompts) for name, count in counts.items() if count is not None}


def _score_all(rewards: Mapping[str, Reward], images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    return score_all(rewards, score_images, images, prompts)


def score_images(
    name: str, reward: Reward, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]
) -> Float[Tensor, " b"]:
    """Return one reward's scores, checked, on the CPU in fp32; of a ``partial`` reward some may be NaN.

    Raises:
        RewardError: if an image or a score is not finite, the reward raises, or the number of scores is wrong.
    """
    first = ", ".join(f'"{printable(prompt.text, MOST_TEXT)}"' for prompt in prompts[:3])
    bad_images = (~images.isfinite()).flatten(1).any(1).sum()
    if type(images) is Tensor and bad_images:  # the estimate's tensor subclasses have no values
        raise RewardError(
            f"reward {name} was not called: {bad_images.item()} of {len(images)} images contain NaN or infinity (first "
            f"prompts: {first}). Use a higher precision or a lower train.learning_rate, and continue with --resume."
        )
    with user_code(f"reward {name}", RewardError, f" (first prompts: {first})"), torch.no_grad():
        scores = torch.as_tensor(reward(images, prompts), dtype=torch.float32).to_dense().cpu()
        shape = tuple(scores.shape)  # a nested tensor has none
    if shape != (len(prompts),):
        raise RewardError(
            f"reward {name} returned shape {shape} for {len(prompts)} images; it must return one "
            f"score per image (first prompts: {first})"
        )
    bad = scores.isinf() if getattr(reward, "partial", False) else ~scores.isfinite()
    bad_rows = bad.nonzero()[:, 0].tolist()
    if bad_rows:
        value = scores[bad_rows[0]].item()
        texts = ", ".join(f'"{printable(prompts[i].text, MOST_TEXT)}"' for i in bad_rows[:3])
        raise RewardError(f"reward {name} returned {value} for {len(bad_rows)} images (prompts: {texts})")
    return scores
