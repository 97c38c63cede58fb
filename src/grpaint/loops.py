"""The two training loops: supervised learning, and reinforcement learning. Neither knows which method it runs."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from grpaint.core.errors import RunError
from grpaint.core.policy import CaptionedImages, Policy
from grpaint.core.rng import permutation
from grpaint.judge import captioned
from grpaint.learn.advantage import compute_advantage
from grpaint.learn.objective import Anchor, Objective, Term
from grpaint.learn.penalty import AdaptiveKl
from grpaint.learn.reward_checks import ConstantWatch
from grpaint.learn.table import RewardTable
from grpaint.recipe.config import SftRecipe, TrainRecipe
from grpaint.recipe.optim import Behaviour
from grpaint.recipe.pieces import Data, Model, WeightedReward
from grpaint.rollout.rollout import Rollout
from grpaint.run.collect import Collector
from grpaint.run.loop import Loop
from grpaint.run.metrics import preview_metrics, reward_metrics, rollout_metrics
from grpaint.run.pictures import rollout_images
from grpaint.run.shares import update_batch


def sft(recipe: SftRecipe, loop: Loop) -> None:
    """Train a supervised stage: minimise the denoising loss on captioned images."""
    for iteration in loop.iterations():
        with loop.phase("update"):
            whole = recipe.data.batch(recipe.train.batch, iteration, recipe.train.seed)
            batch = _own_captioned(loop, whole, iteration, recipe.train.seed)
            no_advantage = torch.zeros(len(batch.group))
            measures = loop.update(partial(recipe.objective, loop.policy), batch, no_advantage)
        loop.record({f"sft/{name}": value for name, value in measures.items()})


def train(recipe: TrainRecipe, loop: Loop) -> None:
    """Train a reinforcement-learning stage: sample groups, score them, move towards what scored above its group.

    With several updates per rollout the adaptive penalty observes the last one.
    """
    settings, policy = recipe.train, loop.policy
    collect, constant_scores = Collector(recipe, loop), ConstantWatch(settings.constant)
    if not loop.done:
        _update_behaviour(policy, recipe.behaviour, -1)
    for iteration in loop.iterations():
        rollout, whole, table = collect(iteration)
        rewards = recipe.reward_set()
        with loop.phase("reward"), torch.no_grad():
            constant_scores.observe(table, rewards.rewards, whole.prompts)
            advantage = compute_advantage(recipe.advantage, table, whole)
        with loop.phase("update"):
            for number, rows in enumerate(_row_splits(whole, settings.updates)):
                batch, own = update_batch(rollout, whole, rows)
                update = iteration * settings.updates + number
                anchor = partial(_anchor_terms, recipe.anchor, recipe.data, loop, update, settings.seed)
                measures = loop.update(partial(_terms, recipe.objective, policy), batch, advantage[own], anchor)
                if number:  # later updates are off-policy, so that their ratio is rightly not 1
                    measures = {name: value for name, value in measures.items() if "ratio_error" not in name}
                loop.record({f"policy/{name}": value for name, value in measures.items()})
        if loop.drawing_follows:
            images = torch.cat(collect.images)
            with loop.phase("pictures"):
                loop.add_rollout(rollout_images(rollout, whole, table, advantage, images, recipe.data, loop.world))
        loop.record(rollout_metrics(whole, table, advantage) | preview_metrics(recipe.plan.prune, whole, table))
        loop.record(reward_metrics(recipe.rewards, rewards, recipe.advantage, whole, table))
        _update_floors(recipe.rewards, table)
        _update_penalty(recipe.objective, measures)
        _update_behaviour(policy, recipe.behaviour, iteration)


def _row_splits(rollout: Rollout, updates: int) -> Iterator[Tensor]:
    """Yield the rows of each update: shuffled by the rollout's key, or in order if there is one update."""
    count = len(rollout.group)
    order = torch.arange(count)
    if updates > 1:
        order = permutation((rollout.seed, rollout.iteration, "updates"), count)
    yield from (rows.sort().values for rows in order.tensor_split(updates))


def _terms(objective: Objective, policy: Policy, batch: Rollout, advantage: Tensor) -> Iterable[Term]:
    """Return the objective's terms."""
    terms = objective(policy, batch, advantage)
    if not isinstance(terms, Iterable) or isinstance(terms, Tensor):
        raise RunError(f"objective: it returned {type(terms).__name__}; it must return an iterator of Terms.")
    return terms


def _anchor_terms(anchor: Anchor | None, data: Data, loop: Loop, update: int, seed: int) -> Iterator[Term]:
    """Yield the supervised loss on captioned images that keeps the model close to its data, if the recipe has one."""
    if anchor:
        whole = data.batch(anchor.batch, update, seed)
        if len(loop.world.share(len(whole.prompts))):
            yield from anchor(loop.policy, _own_captioned(loop, whole, update, seed))


def _own_captioned(loop: Loop, whole: CaptionedImages, update: int, seed: int) -> Rollout:
    """Return this process's share of captioned images as a rollout without steps; it opens no others."""
    share = loop.world.share(len(whole.prompts))
    own = slice(share.start, share.stop)
    batch = captioned(loop.policy, whole.images(own), whole.prompts[own], iteration=update, seed=seed)
    return batch.among(share, len(whole.prompts))


def _update_floors(rewards: Mapping[str, WeightedReward], table: RewardTable) -> None:
    """Pass the scores of this iteration to each reward's floor, whose multiplier then rises or falls."""
    for name, item in rewards.items():
        if item.floor:
            scores = table.columns[name]
            item.floor.observe(scores[table.applies[name]] if name in table.applies else scores)


def _update_penalty(objective: Objective, measures: Mapping[str, float]) -> None:
    """Pass the measured divergence to an adaptive KL penalty."""
    penalty = getattr(objective, "penalty", None)
    if isinstance(penalty, AdaptiveKl) and "kl" in measures:
        penalty.observe(measures["kl"])


def _update_behaviour(policy: Model, behaviour: Behaviour | None, iteration: int) -> None:
    """Blend the behaviour weights towards the current ones, if the recipe has them; iteration -1 creates them."""
    if behaviour:
        policy.blend("behaviour", behaviour.keep(iteration))
