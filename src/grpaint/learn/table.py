"""Rewards asked, their answers checked, and what they said as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpaint.core.errors import GrpaintError, RewardError
from grpaint.core.policy import Prompt, Reward
from grpaint.core.reward import RewardBase
from grpaint.learn import external_rewards as elsewhere


@dataclass(frozen=True)
class RewardTable:
    """Scores by reward name, ``[b]`` or ``[b, steps]``; ``weights`` by name; ``applies`` where a reward spoke.

    A reward absent from ``applies`` applies to every row. Advantages read the columns they need.
    """

    columns: Mapping[str, Float[Tensor, "b *steps"]]
    weights: Mapping[str, float] = field(default_factory=dict)
    applies: Mapping[str, Bool[Tensor, " b"]] = field(default_factory=dict)

    def weight(self, name: str) -> float:
        """A reward's weight, 1 unless said otherwise."""
        return self.weights.get(name, 1.0)

    def rows(self, index: Int[Tensor, " k"]) -> "RewardTable":
        """The scores of some rows."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return RewardTable(columns, self.weights, {name: where[index] for name, where in self.applies.items()})

    @classmethod
    def joined(cls, parts: "Sequence[RewardTable]") -> "RewardTable":
        """The rows of tables of the same rewards, one after the other."""
        first = parts[0]
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in first.columns}
        applies = {name: torch.cat([part.applies[name] for part in parts]) for name in first.applies}
        return cls(columns, first.weights, applies)

    def total(self) -> Float[Tensor, "b *steps"]:
        """The weighted sum of raw scores (Flow-GRPO's aggregate); a reward counts where it applies."""
        parts = []
        for name, column in self.columns.items():
            where = self.applies.get(name)
            parts.append(self.weight(name) * (column if where is None else torch.where(where, column, 0.0)))
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class RewardSet:
    """Named rewards with their weights; ``needs_reference`` names those that look at a prompt's reference image."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def score(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[Prompt],
        references: Bool[Tensor, " b"] | None = None,
    ) -> RewardTable:
        """Ask every reward; those in other processes side by side.

        Raises:
            RewardError: where one raises, or returns NaN, infinity or the wrong length; it names the reward and the
                first prompts. Nothing is replaced by zero.
        """
        columns = elsewhere.columns(self.rewards, ask, images, prompts)
        applies = {}
        if references is not None:
            applies = {name: references for name, r in self.rewards.items() if getattr(r, "needs_reference", False)}
        return RewardTable(columns, self.weights, applies)

    def truncated(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """The share of captions that a reward cuts, by its name, where it has a limit."""
        counts = {name: r.truncated(prompts) for name, r in self.rewards.items() if isinstance(r, RewardBase)}
        return {name: count / len(prompts) for name, count in counts.items() if count is not None}


def ask(name: str, reward: Reward, images: Float[Tensor, "b 3 h w"], prompts: Sequence[Prompt]) -> Float[Tensor, " b"]:
    """One reward's scores, on the CPU in fp32, or the error that says what is wrong with them."""
    first = ", ".join(f'"{prompt.text}"' for prompt in prompts[:3])
    broken = (~images.isfinite()).flatten(1).any(1).sum()
    if type(images) is Tensor and broken:  # a plan's stand-ins have no values
        raise RewardError(
            f"reward {name} was not asked: {broken.item()} of {len(images)} images hold NaN or infinity (first "
            f"prompts: {first}). Take more precision, or a lower train.learning_rate, and go on with --resume."
        )
    try:
        with torch.no_grad():
            scores = torch.as_tensor(reward(images, prompts), dtype=torch.float32).cpu()
    except GrpaintError as error:
        raise RewardError(f"reward {name}: {error} (first prompts: {first})") from error
    except Exception as error:
        raise RewardError(f"reward {name} raised {type(error).__name__}: {error} (first prompts: {first})") from error
    if scores.shape != (len(prompts),):
        raise RewardError(
            f"reward {name} returned shape {tuple(scores.shape)} for {len(prompts)} images; one score an image is "
            f"wanted (first prompts: {first})"
        )
    bad = (~scores.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        worst = ", ".join(f'"{prompts[i].text}"' for i in bad[:3])
        raise RewardError(f"reward {name} returned {scores[bad[0]].item()} for {len(bad)} images (prompts: {worst})")
    return scores
