"""Where samples begin: noise of their own, noise shared within a group, or a noised reference image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.policy import Policy, Prompt
from grpaint.core.rng import permutation


class Begin(NamedTuple):
    """Latents ``[n, *latent]``, the step at which each row enters, and whether it began at a reference image.

    n is p while groups are still one row each.
    """

    x: Tensor
    entry: Tensor
    references: Tensor


class Start(Protocol):
    """Gives the rows their first latents."""

    shared: bool

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], group: Tensor, grid: Sequence[Point], key: tuple[int, int]
    ) -> Begin:
        """``key`` is (seed, iteration); ``group`` names the prompt of every row to be begun."""


def _noise(policy: Policy, rows: int, key: tuple[int, int]) -> Tensor:
    return policy.noise((*key, "start"), range(rows))


def _at_noise(policy: Policy, rows: int, key: tuple[int, int]) -> Begin:
    first = torch.zeros(rows, dtype=torch.long)
    return Begin(_noise(policy, rows, key), first, first.bool())


@dataclass(frozen=True)
class Independent:
    """Every sample has its own start noise (Flow-GRPO, Pro-GRPO)."""

    shared = False

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], group: Tensor, grid: Sequence[Point], key: tuple[int, int]
    ) -> Begin:
        return _at_noise(policy, len(group), key)


@dataclass(frozen=True)
class Shared:
    """One start noise a prompt (DanceGRPO, MixGRPO): what differs within a group is due to the noisy steps alone.

    Until the first of them, :func:`roll` carries one row a prompt.
    """

    shared = True

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], group: Tensor, grid: Sequence[Point], key: tuple[int, int]
    ) -> Begin:
        return _at_noise(policy, len(prompts), key)


@dataclass(frozen=True)
class Reference:
    """A ``share`` of the groups begins at its prompt's reference image, noised to ``strength``; the rest at noise.

    Such rows enter at the first grid point whose noise level sigma / (alpha + sigma) is at or below ``strength``.
    ``noise``: each sample its own, or one a prompt, so that only the noisy steps make a group differ.
    """

    strength: float = 0.6
    share: float = 0.5
    noise: Literal["own", "group"] = "own"

    shared = False

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("share", self.share)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], group: Tensor, grid: Sequence[Point], key: tuple[int, int]
    ) -> Begin:
        eps = _noise(policy, len(group), key) if self.noise == "own" else _noise(policy, len(prompts), key)[group]
        chosen = permutation((*key, "reference"), len(prompts))[: round(self.share * len(prompts))]
        enter = self.enter(grid)
        place, x = grid[enter], eps
        references = torch.isin(group, chosen)
        for number in chosen.tolist():
            picture = prompts[number].reference
            if picture is None:
                raise ValueError(
                    f'plan.start = "reference": the prompt "{prompts[number].text}" has no reference image'
                )
            rows = group == number
            x[rows] = place.alpha * policy.encode_images(picture[None]) + place.sigma * eps[rows]
        return Begin(x, torch.where(references, enter, 0), references)

    def enter(self, grid: Sequence[Point]) -> int:
        """The step at which rows with a reference begin.

        Raises:
            ValueError: where ``strength`` lies below every step's start.
        """
        levels = [sigma / (alpha + sigma) for _, alpha, sigma in grid[:-1]]
        for step, level in enumerate(levels):
            if level <= self.strength + 1e-9:  # a level that is meant to equal it is off by rounding
                return step
        raise ValueError(
            f"start.strength {self.strength:g} lies below the noise at which the last of {len(levels)} steps begins "
            f"({levels[-1]:.3g}), so no step would be left; raise it, or take more steps"
        )
