"""Judging a model on held-out prompts: sampler and guidance of deployment (ODE and none unless said), fixed noise."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from grpaint.core.path import Path, VpPath
from grpaint.core.policy import Prompt, Weights
from grpaint.core.rng import Key
from grpaint.core.step import Ode
from grpaint.learn.objective import Denoising
from grpaint.learn.table import RewardSet
from grpaint.measures.image_statistics import image_statistics
from grpaint.measures.score import comparable_score
from grpaint.recipe.build import dump
from grpaint.recipe.config import Recipe, TrainRecipe
from grpaint.recipe.pieces import Data, Model
from grpaint.recipe.settings import Evaluation
from grpaint.rollout.rollout import Plan, Rollout, roll
from grpaint.rollout.start import Independent, Start
from grpaint.rollout.window import Closed

NORMAL_95 = 1.959964


class _Numbered:
    """A policy whose rows are numbered from ``first`` on, so that a part of a batch draws the noise of that part."""

    def __init__(self, policy: Model, first: int) -> None:
        self._policy, self._first = policy, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def noise(self, key: Key, rows: Sequence[int] | Tensor) -> Tensor:
        return self._policy.noise(key, torch.as_tensor(rows) + self._first)


def sample(
    policy: Model,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    *,
    weights: Weights = "average",
    first: int = 0,
    draw: int = 0,
    start: Start | None = None,
) -> Tensor:
    """One image ``[3, h, w]`` in [0, 1] for each prompt; it depends on its prompt, seed, number and ``draw`` alone.

    ``settings`` say the seed, sampler, steps, guidance, and the share of the steps that the tuned model takes.
    ``first``: the number of the first prompt among all. ``start``: where to begin, noise unless given.
    """
    share = 1.0 if weights == "reference" else settings.tuned_share
    plan = Plan(
        settings.steps,
        window=Closed(),
        outside=settings.sampler,
        weights=weights,
        base_after=share,
        start=start or Independent(),
    )
    numbered = cast("Model", _Numbered(policy, first)) if first else policy
    with policy.meter.account("evaluation"), guided(policy, settings.guidance):
        done = roll(numbered, prompts, 1, plan, iteration=draw, seed=settings.seed)
        with torch.no_grad():
            return policy.decode(done.x0).float().cpu()


def interval(values: Tensor) -> list[float]:
    """95% interval of a mean (normal approximation over prompts)."""
    mean = values.double().mean().item()
    half = (
        NORMAL_95 * values.double().std(correction=1).item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    )
    if not math.isfinite(half):
        return [mean, mean]
    digits = _digits(half or mean, 5)
    return [round(mean - half, digits), round(mean + half, digits)]


def natural_loss(path: Path) -> Denoising:
    """The denoising loss by which a model on this path is judged: velocity on flows, min-SNR epsilon on diffusion."""
    return Denoising("epsilon", 5.0) if isinstance(path, VpPath) else Denoising(times="logit-normal")


def denoising_loss(policy: Model, data: Data, settings: Evaluation, weights: Weights) -> float:
    """The supervised loss, unguided, on held-out captioned images at fixed times and noise."""
    held_out = data.held_out_images(settings.probe, settings.seed)
    images = held_out.images()
    loss = natural_loss(policy.path)
    with torch.no_grad(), policy.meter.account("evaluation"), policy.weights.use(weights), guided(policy, 1.0):
        batch = captioned(policy, images, held_out.prompts, iteration=0, seed=settings.seed)
        return sum(term.loss.item() for term in loss(policy, batch, torch.zeros(len(images))))


@contextmanager
def guided(policy: Model, guidance: float) -> Iterator[None]:
    """Another guidance inside the block."""
    before, policy.guidance = policy.guidance, guidance
    try:
        yield
    finally:
        policy.guidance = before


def captioned(policy: Model, images: Tensor, prompts: Sequence[Prompt], *, iteration: int, seed: int) -> Rollout:
    """Captioned images as samples that no rollout made: what a supervised objective learns from."""
    every = torch.arange(len(prompts))
    with torch.no_grad():
        x0 = policy.encode_images(images)
    return Rollout(
        prompts, every, policy.encode(prompts), Ode(), (), x0, {}, torch.zeros(len(prompts)).bool(), iteration, seed
    )


def evaluate(
    policy: Model,
    data: Data,
    settings: Evaluation,
    *,
    rewards: RewardSet | None = None,
    weights: Weights = "average",
    probe: bool = True,
) -> dict[str, Any]:
    """Scores on held-out prompts, their 95% intervals, scores by category, and with ``probe`` the denoising loss.

    The score is the data's own; where that is a reward and there is none, the denoising loss. ``rewards`` that look at
    a reference image are left out: these images began at noise.
    """
    prompts = data.held_out(settings.prompts, settings.seed)
    images = sample(policy, prompts, settings, weights=weights)
    measures = data.measures(images, prompts) | (free_rewards(rewards, images, prompts) if rewards else {})
    statistics = image_statistics(images)
    line: dict[str, Any] = {"guidance": settings.guidance, "prompts": len(prompts), "steps": settings.steps}
    line |= {"sampler": dump(settings.sampler), "tuned_share": settings.tuned_share}
    line["score"] = data.score if data.score in measures else "denoising_loss"
    for name, values in (measures | statistics).items():
        line |= {name: values.double().mean().item(), f"{name}_interval": interval(values)}
    line["by_kind"] = by_category(data, prompts, measures)
    line |= {f"{name}_by_prompt": _written(values) for name, values in (measures | statistics).items()}
    if probe and data.captioned:
        line["denoising_loss"] = denoising_loss(policy, data, settings, weights)
    return line


def judging_rewards(recipe: Recipe) -> RewardSet | None:
    """Return the rewards that a model is judged by, with the weights of its recipe; None for a supervised recipe.

    What a floor adds to a weight is left out: it belongs to training and changes between evaluations.
    """
    if not isinstance(recipe, TrainRecipe):
        return None
    weights = {name: item.weight for name, item in recipe.rewards.items()}
    return replace(recipe.reward_set(), weights=weights)


def free_rewards(rewards: RewardSet, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """``reward/NAME`` of rewards that need neither a reference nor siblings, and their weighted sum, ``reward``."""
    bound = ("needs_reference", "needs_group")
    free = {name: r for name, r in rewards.rewards.items() if not any(getattr(r, need, False) for need in bound)}
    if not free:
        return {}
    kept = [(r, copy.deepcopy(r.state_dict())) for r in free.values() if hasattr(r, "state_dict")]
    table = RewardSet(free, rewards.weights).score(images, prompts)
    for reward, state in kept:  # what a reward remembers is of training alone
        reward.load_state_dict(state)  # type: ignore[attr-defined]  # they come together
    weighted = torch.stack([table.weight(name) * column for name, column in table.columns.items()])
    return {f"reward/{name}": column for name, column in table.columns.items()} | {"reward": weighted.sum(0)}


def _written(values: Tensor) -> list[float]:
    """To four decimals, and to more where the largest value is small."""
    digits = _digits(values.abs().max().item(), 4)
    return [round(value, digits) for value in values.tolist()]


def _digits(size: float, least: int) -> int:
    """Decimals of a number of this size, four of them its own."""
    return max(least, 3 - math.floor(math.log10(abs(size)))) if size else least


def by_category(data: Data, prompts: Sequence[Prompt], measures: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Means by category of the prompts."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[data.category(prompt)].append(row)
    return {
        kind: {"prompts": len(index)}
        | {name: values[index].double().mean().item() for name, values in measures.items()}
        for kind, index in sorted(rows.items())
    }


def best_guided(
    policy: Model, data: Data, settings: Evaluation, rewards: RewardSet | None = None
) -> dict[str, Any] | None:
    """The base at the best of ``settings.guided``: what guidance alone would give, the fair bar for training.

    The best is by the data's score; without images' scores there is no best.
    """
    if getattr(policy, "distilled", False):  # guidance is inside it
        return None
    asked = rewards if data.score.startswith("reward") else None  # a slow scorer is not asked for nothing
    tried = [
        evaluate(policy, data, replace(settings, guidance=guidance), rewards=asked, weights="reference", probe=False)
        for guidance in settings.guided
    ]
    judged = [line for line in tried if line["score"] in line]
    if not judged:
        return None
    best = max(judged, key=comparable_score)
    return {name: value for name, value in best.items() if not name.endswith("_by_prompt")}


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float]]:
    """Mean difference over the same prompts and noise, and its 95% interval."""
    difference = torch.tensor(after) - torch.tensor(before)
    return difference.double().mean().item(), interval(difference)
