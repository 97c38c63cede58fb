"""Judge a model on held-out prompts with fixed noise, by the sampler and guidance of ``[evaluate]``."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from grpaint.core.errors import RewardError, RunError
from grpaint.core.path import Path, VpPath
from grpaint.core.policy import Prompt, Weights
from grpaint.core.rng import Key
from grpaint.core.step import Ode
from grpaint.core.user_code import user_code
from grpaint.images.encoding import eight_bit
from grpaint.learn.objective import Denoising
from grpaint.learn.table import RewardSet
from grpaint.measures.image_statistics import image_statistics, spread, thumbnails
from grpaint.measures.intervals import normal_interval, rounded
from grpaint.measures.score import comparable_score
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.pieces import Data, Model, sharing
from grpaint.recipe.settings import Evaluation
from grpaint.recipe.trust import JudgingRecipe
from grpaint.rollout.rollout import Plan, Rollout, roll
from grpaint.rollout.start import Independent, Start
from grpaint.rollout.window import Closed


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
    guidance, the share of the steps that the trained model takes, and the frozen adapters that are on. ``first``: the
    number of the first prompt. ``start``: where samples begin, noise by default.
    """
    share = 1.0 if weights == "reference" else settings.tuned_share
    plan = Plan(
        settings.steps,
        window=Closed(),
        outside=settings.sampler,
        weights=weights,
        tail=settings.tail,
        base_after=share,
        start=start or Independent(),
    )
    numbered = cast("Model", _Numbered(policy, first)) if first else policy
    adapters = policy.weights.with_frozen(settings.adapters)
    with policy.meter.account("evaluation"), guided(policy, settings.guidance), adapters:
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


@dataclass(frozen=True)
class Judgement:
    """What the images of held-out ``prompts`` scored.

    ``measures`` of the data and the rewards, and ``statistics`` of the images: ``[b]`` by name. ``images``: the first
    ``evaluate.pictures`` of them in eight bits, ``[n, 3, h, w]``.
    """

    prompts: Sequence[Prompt]
    measures: dict[str, Tensor]
    statistics: dict[str, Tensor]
    images: Tensor


def judge_prompts(
    policy: Model,
    data: Data,
    settings: Evaluation,
    prompts: Sequence[Prompt],
    rewards: RewardSet | None = None,
    weights: Weights = "average",
    world: World = ONE,
) -> Judgement:
    """Sample an image for each of the first held-out prompts, and measure and score it.

    The processes of ``world`` divide the prompts; each returns the whole. ``rewards`` that need a reference image are
    left out, since these samples begin at noise.

    Raises:
        RunError: an image is not finite.
    """
    rewards = rewards and rewards.among(world, prompts)
    share = world.share(len(prompts))
    own, images, small, bad_images = prompts[share.start : share.stop], {}, {}, 0
    measures: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    if own:
        drawn = sample(policy, own, settings, weights=weights, first=share.start)
        bad_images = int((~drawn.isfinite()).flatten(1).any(1).sum())
        if not bad_images:
            measures = data.measures(drawn, own) | (free_rewards(rewards, drawn, own) if rewards else {})
            statistics, small = image_statistics(drawn), {"small": thumbnails(drawn)}
            shown = max(0, min(settings.pictures - share.start, len(drawn)))
            images = {"images": eight_bit(drawn[:shown])} if shown else {}
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
    images = world.gather(images) if settings.pictures else {}
    return Judgement(prompts, measures, statistics, images.get("images", torch.empty(0, 3, 1, 1, dtype=torch.uint8)))


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

    As :func:`judge_prompts` does it, and as :func:`evaluation_line` writes it; ``probe`` adds the denoising loss.

    Raises:
        RunError: an image is not finite.
    """
    settings = replace(settings, pictures=0)
    prompts = data.held_out(settings.prompts, settings.seed)
    judgement = judge_prompts(policy, data, settings, prompts, rewards, weights, world)
    line = evaluation_line(data, settings, judgement)
    if probe and data.captioned:
        line["denoising_loss"] = denoising_loss(policy, data, settings, weights, world)
    return line


def score_key(data: Data, measures: Mapping[str, Any]) -> str:
    """Return the name of the score: the data's own, or the denoising loss if that is a reward and there is none."""
    return data.score if data.score in measures else "denoising_loss"


def evaluation_line(data: Data, settings: Evaluation, judgement: Judgement) -> dict[str, Any]:
    """Return a line of evaluations.jsonl without its denoising loss."""
    prompts, measures = judgement.prompts, judgement.measures
    line: dict[str, Any] = {"guidance": settings.guidance, "prompts": len(prompts)}  # the order of earlier releases
    line |= settings.facts | {"score": score_key(data, measures)}
    for name, values in (measures | judgement.statistics).items():
        line |= {name: values.double().mean().item(), f"{name}_interval": normal_interval(values)}
    line["by_kind"] = by_category(data, prompts, measures)
    return line | {f"{name}_by_prompt": rounded(values) for name, values in (measures | judgement.statistics).items()}


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
