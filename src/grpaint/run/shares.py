"""Divide an iteration among the processes of a run, and gather what all of them decide from.

A rank draws and scores whole prompts, or single samples where there are fewer prompts than ranks and nothing compares
the members of a group before they are gathered. Advantages are computed on every rank from the gathered scores.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from grpaint.core.errors import ConfigError
from grpaint.core.policy import PeopleReward
from grpaint.learn.table import RewardTable
from grpaint.parallel.world import World
from grpaint.recipe.config import Recipe, SftRecipe, TrainRecipe
from grpaint.recipe.pieces import WeightedReward
from grpaint.recipe.settings import Processes
from grpaint.rollout.plan import Leg
from grpaint.rollout.rollout import Rollout, Transition


def check_shares(recipe: Recipe, world: World) -> None:
    """Refuse more ranks than there are shares, and rewards that ranks cannot divide, before weights are opened.

    Raises:
        ConfigError: the message names the setting and the most processes that it allows.
    """
    if world.size == 1:
        return
    if isinstance(recipe, SftRecipe):
        _check_count("train.batch", recipe.train.batch, world)
        return
    for name, item in recipe.rewards.items():
        _check_people(name, item, recipe.processes or Processes(), world)
        if hasattr(item.reward, "state_dict") and not getattr(item.reward, "divisible", False):
            raise ConfigError(
                f"rewards.{name}: it keeps state between calls (it has a state_dict), and {world.size} processes would "
                "each keep their own. Use one process, or set its attribute divisible = True if that changes no score."
            )
        if hasattr(item.reward, "state_dict") and item.place == "node":
            raise ConfigError(
                f'rewards.{name}.place = "node": it keeps state between calls (it has a state_dict), which processes '
                'cannot share; use place = "each".'
            )
    if compares_groups(recipe):
        _check_count("train.prompts", recipe.train.prompts, world, ", and groups are compared while they are sampled")
    else:
        _check_count("train.prompts x train.group_size", recipe.train.prompts * recipe.train.group_size, world)


def _check_people(name: str, item: WeightedReward, settings: Processes, world: World) -> None:
    """Refuse a reward that works in the run folder, unless one process has it and no other loses patience meanwhile.

    Raises:
        ConfigError: the message names the setting.
    """
    if not isinstance(item.reward, PeopleReward):
        return
    if world.nodes > 1:
        raise ConfigError(f"rewards.{name}: it works on one machine, and there are {world.nodes}; start all on one.")
    if not item.weight:
        raise ConfigError(f"rewards.{name}.weight = 0: people who judge evaluations are asked by a run of one process.")
    if item.place != "node":
        raise ConfigError(f'rewards.{name}.place: one process of a run has such a reward; set it to "node".')
    wait_s = getattr(item.reward, "wait_s", 0.0)
    if wait_s >= settings.limit_s:
        raise ConfigError(
            f"rewards.{name}.wait_s = {wait_s:g}: the other processes wait for processes.limit_s = "
            f"{settings.limit_s:g} seconds; lower the one, or raise the other."
        )


def _check_count(key: str, count: int, world: World, reason: str = "") -> None:
    if world.size > count:
        raise ConfigError(f"{key} = {count}{reason}: too few for {world.size} processes; start at most {count}.")


def compares_groups(recipe: TrainRecipe) -> bool:
    """Return whether pruning, a reward or the objective needs whole groups on a rank."""
    pieces = [recipe.objective, *(item.reward for item in recipe.rewards.values())]
    return recipe.plan.prune is not None or any(getattr(piece, "needs_group", False) for piece in pieces)


def own_samples(recipe: TrainRecipe, prompts: int, world: World, rank: int | None = None) -> Tensor:
    """Return the numbers of the samples that a rank draws, by default this one: those of whole prompts if it can."""
    group = recipe.train.group_size
    if world.size <= prompts or compares_groups(recipe):
        share = world.share(prompts, rank)
        return torch.arange(share.start * group, share.stop * group)
    share = world.share(prompts * group, rank)
    return torch.arange(share.start, share.stop)


def divide_rows(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Return how an iteration is divided: the rows (images) of each rank, and the largest share over the mean.

    Raises:
        ConfigError: so many processes cannot divide this recipe.
    """
    world = World()
    world.size = processes
    check_shares(recipe, world)
    if isinstance(recipe, SftRecipe):
        rows = [len(world.share(recipe.train.batch, rank)) for rank in range(processes)]
    else:
        rows = [len(own_samples(recipe, recipe.train.prompts, world, rank)) for rank in range(processes)]
    return {"count": processes, "rows": rows, "imbalance": round(max(rows) * processes / sum(rows), 4)}


def number_rows(rollout: Rollout, counts: Sequence[int], world: World) -> Rollout:
    """Return this rank's rollout with the numbers of its rows in that of all ranks, which have ``counts`` rows."""
    first = sum(counts[: world.rank])
    return dataclasses.replace(rollout, numbers=torch.arange(len(rollout.group)) + first, count=sum(counts))


@dataclass(frozen=True)
class _NoCondition:
    """A number of rows whose encoded prompts are on other processes."""

    count: int

    def __len__(self) -> int:
        return self.count

    def rows(self, index: Tensor) -> Self:
        return type(self)(len(index))


def outline(rollout: Rollout, legs: Sequence[Leg], world: World) -> Rollout:
    """Return the rollout of all ranks without latents: groups, steps, previews and references, in the order of rows.

    Its latents are on the meta device: they have a shape and no values; its condition has a length alone. In one
    process it is ``rollout`` itself.
    """
    if world.size == 1:
        return rollout
    first = int(rollout.numbers[0])
    own = {"group": rollout.group, "references": rollout.references}
    own |= {f"preview/{step}": scores for step, scores in rollout.previews.items()}
    own |= {f"rows/{transition.step}": transition.rows + first for transition in rollout.transitions}
    every = world.gather(own)
    latent, count = rollout.x0.shape[1:], len(every["group"])
    transitions = tuple(
        _outline_transition(leg, every[f"rows/{leg.step}"], latent) for leg in legs if f"rows/{leg.step}" in every
    )
    return dataclasses.replace(
        rollout,
        group=every["group"],
        cond=_NoCondition(count),
        transitions=transitions,
        x0=torch.empty(count, *latent, device="meta"),
        previews={step: every[f"preview/{step}"] for step in rollout.previews},
        references=every["references"],
        numbers=torch.arange(count),
        total=-1,
        actions=-1,
    )


def _outline_transition(leg: Leg, rows: Tensor, latent: Sequence[int]) -> Transition:
    x = torch.empty(len(rows), *latent, device="meta")
    logp = torch.empty(len(rows), device="meta")
    return Transition(leg.step, rows, leg.here, leg.there, x, x, logp, x, leg.std)


def gather_table(table: RewardTable, world: World) -> RewardTable:
    """Return the scores of all ranks' rows, in order."""
    if world.size == 1:
        return table
    columns = {f"score/{name}": column for name, column in table.columns.items()}
    every = world.gather(columns | {f"applies/{name}": mask for name, mask in table.applies.items()})
    return RewardTable(
        {name: every[f"score/{name}"] for name in table.columns},
        table.weights,
        {name: every[f"applies/{name}"] for name in table.applies},
    )


def update_batch(rollout: Rollout, whole: Rollout, rows: Tensor) -> tuple[Rollout, Tensor]:
    """Return this rank's part of an update on ``rows`` of the whole, and these rows' numbers in the whole.

    The part says how many rows and actions the update has on all ranks, so that its terms sum to the whole loss.
    """
    first = int(rollout.numbers[0])
    own = rows[(rows >= first) & (rows < first + len(rollout.group))]
    actions = sum(int(torch.isin(transition.rows, rows).sum()) for transition in whole.transitions)
    return dataclasses.replace(rollout.rows(own - first), total=len(rows), actions=actions), own
