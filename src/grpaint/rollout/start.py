"""Where samples begin: with noise of their own, noise shared within a group, or a noised reference image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from grpaint.core.path import Point
from grpaint.core.policy import Policy, Prompt
from grpaint.core.rng import Key, permutation


class StartRows(NamedTuple):
    """Rows that begin: the prompt number ``group`` and the number in the whole rollout of each, ``[n]``."""

    group: Tensor
    numbers: Tensor


class StartLatents(NamedTuple):
    """Latents ``[n, *latent]``, each row's first step ``[n]``, and whether it began at a reference image ``[n]``.

    n is b, or p while groups are still one row each.
    """

    x: Tensor
    entry: Tensor
    references: Tensor


class Start(Protocol):
    """Chooses the first latents of the rows; ``shared`` if a group begins as one row."""

    shared: bool

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], rows: StartRows, grid: Sequence[Point], key: Key
    ) -> StartLatents:
        """Return the start of ``rows``; ``key`` is (seed, iteration). A row must depend on its own numbers alone."""


def _start_noise(policy: Policy, numbers: Tensor, key: Key) -> Tensor:
    return policy.noise((*key, "start"), numbers)


def _begin_at_noise(policy: Policy, numbers: Tensor, key: Key) -> StartLatents:
    first_step = torch.zeros(len(numbers), dtype=torch.long)
    x = policy.path.start_std * _start_noise(policy, numbers, key)
    return StartLatents(x, first_step, first_step.bool())


@dataclass(frozen=True)
class Independent:
    """Every sample has its own start noise (Flow-GRPO, Pro-GRPO)."""

    shared = False

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], rows: StartRows, grid: Sequence[Point], key: Key
    ) -> StartLatents:
        return _begin_at_noise(policy, rows.numbers, key)


@dataclass(frozen=True)
class Shared:
    """One start noise per prompt (DanceGRPO, MixGRPO): the members of a group differ by the noisy steps alone.

    Until the first noisy step, :func:`roll` computes one row per prompt.
    """

    shared = True

    def begin(
        self, policy: Policy, prompts: Sequence[Prompt], rows: StartRows, grid: Sequence[Point], key: Key
    ) -> StartLatents:
        return _begin_at_noise(policy, rows.numbers, key)


@dataclass(frozen=True)
class Reference:
    """A ``share`` of the groups begins at its prompt's reference image, noised to ``strength``; the rest at noise.

    Such rows begin at the first grid point whose noise level sigma / (alpha + sigma) is at or below ``strength``.
    ``noise``: "own" for each sample, or one per "group", whose members then differ by the noisy steps alone.
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
        self, policy: Policy, prompts: Sequence[Prompt], rows: StartRows, grid: Sequence[Point], key: Key
    ) -> StartLatents:
        group = rows.group
        if self.noise == "own":
            eps = _start_noise(policy, rows.numbers, key)
        else:
            groups, position = group.unique(return_inverse=True)
            eps = _start_noise(policy, groups, key)[position]
        chosen_prompts = permutation((*key, "reference"), len(prompts))[: round(self.share * len(prompts))]
        entry = self.entry_step(grid)
        point, x = grid[entry], policy.path.start_std * eps
        references = torch.isin(group, chosen_prompts)
        for number in chosen_prompts[torch.isin(chosen_prompts, group)].tolist():
            image = prompts[number].reference
            if image is None:
                raise ValueError(
                    f'plan.start = "reference": the prompt "{prompts[number].text}" has no reference image'
                )
            members = group == number
            x[members] = point.alpha * policy.encode_images(image[None]) + point.sigma * eps[members]
        return StartLatents(x, torch.where(references, entry, 0), references)

    def entry_step(self, grid: Sequence[Point]) -> int:
        """Return the step at which rows with a reference begin.

        Raises:
            ValueError: if ``strength`` lies below the noise level of every step.
        """
        levels = [sigma / (alpha + sigma) for _, alpha, sigma in grid[:-1]]
        for step, level in enumerate(levels):
            if level <= self.strength + 1e-9:  # a level meant to equal it may differ by rounding
                return step
        raise ValueError(
            f"start.strength {self.strength:g} lies below the noise at which the last of {len(levels)} steps begins "
            f"({levels[-1]:.3g}), so no step would be left; raise it, or take more steps"
        )
