"""What a recipe will do, said before it does it, from shapes alone."""

import math
from itertools import pairwise
from typing import Any

from grpaint.learn.forward import Forward
from grpaint.run.config import Recipe, SftRecipe, TrainRecipe


def step_table(recipe: Recipe) -> list[dict[str, Any]]:
    """Each step's sigma, gain and std, and whether the first iteration explores there."""
    if not isinstance(recipe, TrainRecipe):
        return []
    plan, grid = recipe.plan, recipe.model.path.grid(recipe.plan.steps)
    noisy = plan.window.steps(plan.steps, 0, recipe.train.seed)
    rows = []
    for k, (here, there) in enumerate(pairwise(grid)):
        gain, std = (plan.sampler if k in noisy else plan.outside)(here, there)
        sigmas = {"sigma": here.sigma, "sigma_next": there.sigma}
        rows.append({"step": k, "t": here.t, **sigmas, "gain": gain, "std": std, "noisy": k in noisy})
    return rows


def costs(recipe: Recipe) -> dict[str, Any]:
    """The batch plan, the model evaluations of an iteration (a backward counts 2), and the memory of what is kept.

    The update is an upper bound: groups without spread are left out of it.
    """
    guided = 1 if getattr(recipe.model, "guidance", 1) == 1 else 2
    if isinstance(recipe, SftRecipe):
        return {"images": recipe.train.batch, "updates": 1, "evaluations_update": 3 * guided * recipe.train.batch}
    train, plan = recipe.train, recipe.plan
    images = train.prompts * train.group_size
    noisy = plan.window.steps(plan.steps, 0, train.seed)
    fork = min(noisy.start if len(noisy) else plan.steps, *(plan.prune.at if plan.prune else ()), plan.steps)
    live, rollout = train.group_size, 0
    for k in range(plan.steps):
        calls = 1 if plan.start.shared and k < fork else live
        rollout += train.prompts * calls
        if plan.prune and k in plan.prune.at:
            live = plan.prune.keep[plan.prune.at.index(k)]
    kept = train.prompts * live
    penalty = getattr(recipe.objective, "penalty", None)
    if isinstance(recipe.objective, Forward):
        update = kept * recipe.objective.evaluations
    else:
        update = kept * len(noisy) * (3 + (1 if penalty else 0))
    if recipe.anchor:
        update += 3 * recipe.anchor.batch * train.updates
    latent = math.prod(recipe.model.sample_shape) * 4
    return {
        "prompts": train.prompts,
        "group_size": train.group_size,
        "images": images,
        "updates": train.updates,
        "rows_an_update": math.ceil(kept / train.updates),
        "evaluations_rollout": rollout * guided,
        "evaluations_update": update * guided,
        "evaluations_iteration": (rollout + update) * guided,
        "kept_mib": round(kept * latent * (3 * len(noisy) + 1) / 2**20, 2),
    }
