"""The steps, batches, model evaluations and memory of a recipe, computed from shapes before any weight is opened."""

import math
from typing import Any

from grpaint.backends.fake import emulate_device, fake_runtime
from grpaint.core.errors import GrpaintError
from grpaint.core.runtime import resolve
from grpaint.learn.forward import ForwardObjective
from grpaint.recipe.catalog import kind_of
from grpaint.recipe.config import Recipe, SftRecipe, TrainRecipe
from grpaint.recipe.settings import Evaluation


def step_table(recipe: Recipe) -> list[dict[str, Any]]:
    """Return sigma, gain and std of every step of the first rollout, and whether it is noisy and trained."""
    if not isinstance(recipe, TrainRecipe):
        return []
    rows = []
    for leg in recipe.plan.course(recipe.model.path, 0, recipe.train.seed).legs:
        gain, std = leg.sampler(leg.here, leg.there)
        points = {"step": leg.step, "t": leg.here.t, "sigma": leg.here.sigma, "sigma_next": leg.there.sigma}
        rows.append(points | {"gain": gain, "std": std, "noisy": leg.trained})
    return rows


def rollout_evaluations(recipe: TrainRecipe, iteration: int) -> tuple[int, int]:
    """Return the forward passes of one prompt's rollout, without guidance, and how many of its actions are trained."""
    plan, live, calls, actions = recipe.plan, recipe.train.group_size, 0, 0
    course = plan.course(recipe.model.path, iteration, recipe.train.seed)
    for leg in course.legs:
        calls += 1 if plan.start.shared and leg.step < course.fork else live
        live = course.prune.get(leg.step, live)
        actions += leg.trained
    return calls, actions * min(live, getattr(recipe.advantage, "keep", live))


def retained_rows(recipe: TrainRecipe) -> int:
    """Return the rows whose graphs the first rollout retains with ``train.retain``, later pruned rows included."""
    live, rows = recipe.train.group_size, 0
    course = recipe.plan.course(recipe.model.path, 0, recipe.train.seed)
    for leg in course.legs:
        rows += live * leg.trained
        live = course.prune.get(leg.step, live)
    return recipe.train.prompts * rows


def image_evaluations(recipe: Recipe, settings: Evaluation) -> int:
    """Return the model evaluations of an image that is judged: 2 a step with guidance, unless it is distilled."""
    distilled = getattr(recipe.model, "guided_by", "") == "distilled"
    return settings.steps * (1 if settings.guidance == 1 or distilled else 2)


def deployed_evaluations(recipe: Recipe) -> int:
    """Return the model evaluations of judging the model once as ``[deploy]`` uses it; 0 without that table."""
    settings = recipe.deployed
    return settings.prompts * image_evaluations(recipe, settings) if settings else 0


def picture_evaluations(recipe: Recipe) -> int:
    """Return the model evaluations of the pictures that are drawn every ``evaluate.pictures_every`` iterations."""
    settings = recipe.drawing
    images = min(settings.pictures, settings.prompts) if settings.pictures_every else 0
    return images * image_evaluations(recipe, settings)


def costs(recipe: Recipe) -> dict[str, Any]:
    """Return the batch plan, the model evaluations of an iteration (a backward pass counts 2), and memory in MiB.

    ``evaluations_pictures`` are those of drawing held-out pictures once, between evaluations, and
    ``evaluations_deploy`` those that ``[deploy]`` adds to an evaluation. ``kept_mib`` is the memory of the rollout's
    latents, ``retained_mib`` that of retained graphs. The update is an upper bound: it leaves out groups whose images
    all scored alike. Where rollouts grow, the numbers are those of the first iteration, and
    ``evaluations_iteration_last`` is that of the last.
    """
    guided = recipe.model.calls
    if isinstance(recipe, SftRecipe):
        update = 3 * guided * recipe.train.batch
        return {
            "images": recipe.train.batch,
            "updates": 1,
            "evaluations_update": update,
            **_judging(recipe),
        }
    train, plan = recipe.train, recipe.plan
    images = train.prompts * train.group_size
    calls, actions = (train.prompts * number for number in rollout_evaluations(recipe, 0))
    survivors = train.prompts * (plan.prune.keep[-1] if plan.prune and plan.prune.keep else train.group_size)
    penalty = getattr(recipe.objective, "penalty", None)
    if isinstance(recipe.objective, ForwardObjective):
        update = survivors * recipe.objective.evaluations(plan.weights)
    else:
        update = actions * (3 + bool(penalty)) + 3 * survivors * bool(getattr(recipe.objective, "terminal", 0))
    if recipe.anchor:
        update += 3 * recipe.anchor.batch * train.updates
    latent = math.prod(recipe.model.sample_shape) * 4
    retained: dict[str, float] = {}
    if train.retain:  # the rollout then holds forward and backward of the noisy steps, of pruned and flat rows too
        rows, measure = retained_rows(recipe), getattr(recipe.model, "graph_bytes", None)
        calls, update = calls + 2 * rows, update - 3 * actions
        if measure:
            retained["retained_mib"] = round(rows * measure(resolve(recipe.device, recipe.precision)) / 2**20, 1)
    evaluations = (calls + update) * guided
    growth = {}
    if plan.growth:
        growth["evaluations_iteration_last"] = evaluations + _growth_evaluations(recipe, train.iterations - 1)
    numbers = {
        "prompts": train.prompts,
        "group_size": train.group_size,
        "images": images,
        "updates": train.updates,
        "rows_an_update": math.ceil(survivors / train.updates),
        "evaluations_rollout": calls * guided,
        "evaluations_update": update * guided,
        "evaluations_iteration": evaluations,
        **_judging(recipe),
        "kept_mib": round(latent * (3 * actions + survivors) / 2**20, 2),
    }
    return numbers | growth | retained


def _judging(recipe: Recipe) -> dict[str, int]:
    deployed = {"evaluations_deploy": deployed_evaluations(recipe)} if recipe.deploy else {}
    return {"evaluations_pictures": picture_evaluations(recipe)} | deployed


def _growth_evaluations(recipe: TrainRecipe, iteration: int) -> int:
    """Return the model evaluations that growth has added to an iteration."""
    more = recipe.plan.steps_at(iteration) - recipe.plan.steps
    return more * recipe.train.prompts * recipe.train.group_size * recipe.model.calls


def run_evaluations(recipe: Recipe) -> tuple[int, int, int]:
    """Return the model evaluations of the first iteration, the iterations of the whole run, and all its evaluations.

    The counts are at most these: groups without spread cost less, and a run with a budget then has more iterations.
    """
    numbers, train = costs(recipe), recipe.train
    first = numbers["evaluations_update" if isinstance(recipe, SftRecipe) else "evaluations_iteration"]
    each, count, total = first, 0, 0
    while count < train.iterations and not (train.evaluations and total >= train.evaluations):
        stage = train.iterations - count
        if isinstance(recipe, TrainRecipe) and recipe.plan.growth:
            each = first + _growth_evaluations(recipe, count)
            if recipe.plan.steps_at(count) < recipe.plan.growth.most:
                stage = min(stage, recipe.plan.growth.every)
        if train.evaluations:
            stage = min(stage, math.ceil((train.evaluations - total) / each))
        count, total = count + stage, total + stage * each
    return first, count, total


def gradient_bytes(recipe: Recipe) -> int | None:
    """Return the bytes of gradients that a rank sums with the others in an update, in fp32: 4 a trainable number.

    They are counted on fake networks. None for a model that is not one of grpaint's own, or lacks files.
    """
    if kind_of(type(recipe.model)) is None:
        return None
    try:
        runtime = fake_runtime(recipe.device, recipe.precision)
        with emulate_device(runtime.target):
            return 4 * sum(parameter.numel() for parameter in recipe.model.load(runtime).parameters())
    except GrpaintError:
        return None
