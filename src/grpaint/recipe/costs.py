"""What a recipe will do, said before it does it, from shapes alone."""

import math
from typing import Any

from grpaint.core.runtime import resolve
from grpaint.learn.forward import ForwardObjective
from grpaint.recipe.config import Recipe, SftRecipe, TrainRecipe


def step_table(recipe: Recipe) -> list[dict[str, Any]]:
    """Each step's sigma, gain and std, and whether the first iteration explores there."""
    if not isinstance(recipe, TrainRecipe):
        return []
    rows = []
    for leg in recipe.plan.course(recipe.model.path, 0, recipe.train.seed).legs:
        gain, std = leg.sampler(leg.here, leg.there)
        place = {"step": leg.step, "t": leg.here.t, "sigma": leg.here.sigma, "sigma_next": leg.there.sigma}
        rows.append(place | {"gain": gain, "std": std, "noisy": leg.trained})
    return rows


def rollout_evaluations(recipe: TrainRecipe, iteration: int) -> tuple[int, int]:
    """Forwards of a prompt's rollout in an iteration, and how many actions of it are trained on, without guidance."""
    plan, live, calls, actions = recipe.plan, recipe.train.group_size, 0, 0
    course = plan.course(recipe.model.path, iteration, recipe.train.seed)
    for leg in course.legs:
        calls += 1 if plan.start.shared and leg.step < course.fork else live
        live = course.prune.get(leg.step, live)
        actions += leg.trained
    return calls, actions * min(live, getattr(recipe.advantage, "keep", live))


def retained_rows(recipe: TrainRecipe) -> int:
    """Rows whose graphs a rollout of the first iteration keeps, if it keeps them; those that are pruned later too."""
    live, rows = recipe.train.group_size, 0
    course = recipe.plan.course(recipe.model.path, 0, recipe.train.seed)
    for leg in course.legs:
        rows += live * leg.trained
        live = course.prune.get(leg.step, live)
    return recipe.train.prompts * rows


def costs(recipe: Recipe) -> dict[str, Any]:
    """The batch plan, the model evaluations of an iteration (a backward counts 2), and the memory of what is kept.

    The update is an upper bound: groups without spread are left out of it.
    """
    guided = recipe.model.calls
    if isinstance(recipe, SftRecipe):
        return {"images": recipe.train.batch, "updates": 1, "evaluations_update": 3 * guided * recipe.train.batch}
    train, plan = recipe.train, recipe.plan
    images = train.prompts * train.group_size
    calls, actions = (train.prompts * number for number in rollout_evaluations(recipe, 0))
    kept = train.prompts * (plan.prune.keep[-1] if plan.prune and plan.prune.keep else train.group_size)
    penalty = getattr(recipe.objective, "penalty", None)
    if isinstance(recipe.objective, ForwardObjective):
        update = kept * recipe.objective.evaluations
    else:
        update = actions * (3 + bool(penalty)) + 3 * kept * bool(getattr(recipe.objective, "terminal", 0))
    if recipe.anchor:
        update += 3 * recipe.anchor.batch * train.updates
    latent = math.prod(recipe.model.sample_shape) * 4
    held: dict[str, float] = {}
    if train.retain:  # forward and backward of the noisy steps are booked in the rollout, dead and flat rows' too
        rows, measure = retained_rows(recipe), getattr(recipe.model, "graph_bytes", None)
        calls, update = calls + 2 * rows, update - 3 * actions
        if measure:
            held["retained_mib"] = round(rows * measure(resolve(recipe.device, recipe.precision)) / 2**20, 1)
    return {
        "prompts": train.prompts,
        "group_size": train.group_size,
        "images": images,
        "updates": train.updates,
        "rows_an_update": math.ceil(kept / train.updates),
        "evaluations_rollout": calls * guided,
        "evaluations_update": update * guided,
        "evaluations_iteration": (calls + update) * guided,
        "kept_mib": round(latent * (3 * actions + kept) / 2**20, 2),
    } | held
