"""Judge a model on held-out prompts with fixed noise, by the sampler and guidance of ``[evaluate]``."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from grpaint.core.errors import RewardError, RunError
from grpaint.core.path import Path, VpPath
from grpaint.core.policy import Prompt, Weights
from grpaint.core.rng import Key
from grpaint.core.step import Ode
from grpaint.core.user_code import user_code
from grpaint.learn.objective import Denoising
from grpaint.learn.table import RewardSet
from grpaint.measures.image_statistics import image_statistics, spread, thumbnails
from grpaint.measures.score import comparable_score
from grpaint.parallel.world import ONE, World
from grpaint.recipe.build import dump
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.pieces import Data, Model, sharing
from grpaint.recipe.settings import Evaluation
from grpaint.recipe.trust import JudgingRecipe
from grpaint.rollout.rollout import Plan, Rollout, roll
from grpaint.rollout.start import Independent, Start
from grpaint.rollout.window import Closed

NORMAL_95 = 1.959964


class _Numbered:
    """A policy whose rows are numbered from ``first``, so that part of a batch gets the noise of those rows."""

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
    """Sample one image for each prompt, ``[b, 3, h, w]`` in [0, 1], fp32 on the CPU.

    An image depends on its prompt, the seed, its number and ``draw`` alone. ``settings`` gives seed, sampler, steps,
    guidance, and the share of the steps that the trained model takes. ``first``: the number of the first prompt.
    ``start``: where samples begin, noise by default.
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
        rollout = roll(numbered, prompts, 1, plan, iteration=draw, seed=settings.seed)
        with torch.no_grad():
            return policy.decode(rollout.x0).float().cpu()


def sample_divided(
    policy: Model, prompts: Sequence[Prompt], settings: Evaluation, world: World, weights: Weights
) -> Tensor:
    """Sample as :func:`sample` does; the processes of ``world`` divide the prompts, and each returns all images."""
    share = world.share(len(prompts))
    own = prompts[share.start : share.stop]
    images = {"images": sample(policy, own, settings, weights=weights, first=share.start)} if own else {}
    return world.gather(images)["images"]


def interval(values: Tensor) -> list[float]:
    """Return the 95% interval of the mean of ``[b]`` values, by the normal approximation."""
    mean = values.double().mean().item()
    half = (
        NORMAL_95 * values.double().std(correction=1).item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    )
    if not math.isfinite(half):
        return [mean, mean]
    digits = _digits(half or mean, 5)
    return [round(mean - half, digits), round(mean + half, digits)]


def natural_loss(path: Path) -> Denoising:
    """Return the denoising loss that judges a model on ``path``: velocity on flows, min-SNR epsilon on diffusion."""
    return Denoising("epsilon", 5.0) if isinstance(path, VpPath) else Denoising(times="logit-normal")


def denoising_loss(policy: Model, data: Data, settings: Evaluation, weights: Weights, world: World = ONE) -> float:
    """Return the supervised loss, unguided, on held-out captioned images at fixed times and noise."""
    held_out = data.held_out_images(settings.probe, settings.seed)
    loss, share, own = natural_loss(policy.path), world.share(len(held_out.prompts)), 0.0
    with torch.no_grad(), policy.meter.account("evaluation"), policy.weights.use(weights), guided(policy, 1.0):
        if share:
            rows = slice(share.start, share.stop)
            images, prompts = held_out.images(rows), held_out.prompts[rows]
            batch = captioned(policy, images, prompts, iteration=0, seed=settings.seed)
            batch = batch.among(share, len(held_out.prompts))
            own = sum(term.loss.item() for term in loss(policy, batch, torch.zeros(len(images))))
    return float(sum(world.gather_values(own)))


@contextmanager
def guided(policy: Model, guidance: float) -> Iterator[None]:
    """Set the policy's guidance within the block."""
    previous, policy.guidance = policy.guidance, guidance
    try:
        yield
    finally:
        policy.guidance = previous


def captioned(policy: Model, images: Tensor, prompts: Sequence[Prompt], *, iteration: int, seed: int) -> Rollout:
    """Return captioned images as a rollout without steps, from which a supervised objective learns."""
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
    world: World = ONE,
) -> dict[str, Any]:
    """Return a line of evaluations.jsonl: scores on held-out prompts, 95% intervals, scores by category and prompt.

    The processes of ``world`` divide the prompts; each returns the whole line.

    The score is the data's own, or the denoising loss if that score is a reward and there are no rewards. ``rewards``
    that need a reference image are left out, since these samples begin at noise. ``probe`` adds the denoising loss.

    Raises:
        RunError: an image is not finite.
    """
    prompts = data.held_out(settings.prompts, settings.seed)
    rewards = rewards and rewards.among(world, prompts)
    measures, statistics, small, bad_images = _measure(policy, data, settings, rewards, weights, prompts, world)
    if rewards:
        rewards.finish()
    if bad_images := sum(world.gather_values(bad_images)):
        raise RunError(
            f"{bad_images} of {len(prompts)} images of an evaluation contain NaN or infinity: the weights, or "
            f"evaluate.guidance = {settings.guidance:g}, are out of range. Lower train.learning_rate, or use a higher "
            "precision; the last checkpoint stays."
        )
    measures, statistics = world.gather(measures), world.gather(statistics)
    statistics["image/spread"] = spread(world.gather(small)["small"])  # of all images, not of a share
    line: dict[str, Any] = {"guidance": settings.guidance, "prompts": len(prompts), "steps": settings.steps}
    line |= {"sampler": dump(settings.sampler), "tuned_share": settings.tuned_share}
    line["score"] = data.score if data.score in measures else "denoising_loss"
    for name, values in (measures | statistics).items():
        line |= {name: values.double().mean().item(), f"{name}_interval": interval(values)}
    line["by_kind"] = by_category(data, prompts, measures)
    line |= {f"{name}_by_prompt": _rounded(values) for name, values in (measures | statistics).items()}
    if probe and data.captioned:
        line["denoising_loss"] = denoising_loss(policy, data, settings, weights, world)
    return line


def _measure(
    policy: Model,
    data: Data,
    settings: Evaluation,
    rewards: RewardSet | None,
    weights: Weights,
    prompts: Sequence[Prompt],
    world: World,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], int]:
    """Return measures, statistics and ``small`` copies of this process's images, and how many are not finite.

    Nothing is measured if one is not finite, or if the share is empty.
    """
    share = world.share(len(prompts))
    own = prompts[share.start : share.stop]
    if not own:
        return {}, {}, {}, 0
    images = sample(policy, own, settings, weights=weights, first=share.start)
    if bad_images := int((~images.isfinite()).flatten(1).any(1).sum()):
        return {}, {}, {}, bad_images
    measures = data.measures(images, own) | (free_rewards(rewards, images, own) if rewards else {})
    return measures, image_statistics(images), {"small": thumbnails(images)}, 0


def judging_rewards(recipe: Recipe | JudgingRecipe) -> RewardSet | None:
    """Return the rewards that a model is judged by, with the weights of its recipe; None if it has none.

    What a floor adds to a weight is left out: it belongs to training and changes between evaluations.
    """
    if isinstance(recipe, SftRecipe) or not recipe.rewards:
        return None
    rewards = {name: item.reward for name, item in recipe.rewards.items()}
    weights = {name: item.weight for name, item in recipe.rewards.items()}
    return RewardSet(rewards, weights, sharing(recipe.rewards))


def free_rewards(rewards: RewardSet, images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Return ``reward/NAME`` of the rewards that need neither a reference nor a group, and their weighted sum."""
    needs = ("needs_reference", "needs_group")
    free = {name: r for name, r in rewards.rewards.items() if not any(getattr(r, need, False) for need in needs)}
    if not free:
        return {}
    states: dict[str, Any] = {}
    for name, reward in free.items():
        with user_code(f"reward {name}", RewardError):
            if hasattr(reward, "state_dict"):
                states[name] = copy.deepcopy(reward.state_dict())
    table = replace(rewards, rewards=free).score(images, prompts)
    for name, state in states.items():  # evaluation must not change the state of a reward
        with user_code(f"reward {name}", RewardError):
            free[name].load_state_dict(state)  # type: ignore[attr-defined]  # it has both or neither
    weighted = torch.stack([table.weight(name) * column for name, column in table.columns.items()])
    return {f"reward/{name}": column for name, column in table.columns.items()} | {"reward": weighted.sum(0)}


def _rounded(values: Tensor) -> list[float]:
    """Round to four decimals, or more if the largest value is small."""
    digits = _digits(values.abs().max().item(), 4)
    return [round(value, digits) for value in values.tolist()]


def _digits(size: float, least: int) -> int:
    """Return the decimals that show four significant digits of a number of this size, at least ``least``."""
    return max(least, 3 - math.floor(math.log10(abs(size)))) if size else least


def by_category(data: Data, prompts: Sequence[Prompt], measures: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the number of prompts and the mean of each measure, by category."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[data.category(prompt)].append(row)
    return {
        kind: {"prompts": len(index)}
        | {name: values[index].double().mean().item() for name, values in measures.items()}
        for kind, index in sorted(rows.items())
    }


def best_guided(
    policy: Model, data: Data, settings: Evaluation, rewards: RewardSet | None = None, world: World = ONE
) -> dict[str, Any] | None:
    """Judge the base at each guidance of ``settings.guided``; return the line of the best, or None.

    It shows what guidance alone would give, the fair baseline for training. The best is by the data's score; there is
    none if images have no score or if guidance is distilled into the model.
    """
    if getattr(policy, "distilled", False):
        return None
    deciding = rewards if data.score.startswith("reward") else None  # others would be slow and decide nothing
    lines = [
        evaluate(policy, data, case, rewards=deciding, weights="reference", probe=False, world=world)
        for case in (replace(settings, guidance=guidance) for guidance in settings.guided)
    ]
    lines = [line for line in lines if line["score"] in line]
    if not lines:
        return None
    best = max(lines, key=comparable_score)
    return {name: value for name, value in best.items() if not name.endswith("_by_prompt")}


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float]]:
    """Return the mean difference over the same prompts and noise, and its 95% interval."""
    difference = torch.tensor(after) - torch.tensor(before)
    return difference.double().mean().item(), interval(difference)
