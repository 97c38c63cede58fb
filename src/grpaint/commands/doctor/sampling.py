"""Checks of sampling: parity with the stock pipeline, the noise of steps, and the ratio before an update."""

from typing import Any

import torch
from torch import Tensor

from grpaint.backends.families.schedule import stock_grid_matches
from grpaint.commands.doctor.examination import Examination, Finding
from grpaint.learn.surrogate import PpoClip
from grpaint.rollout.rollout import Plan, roll
from grpaint.rollout.window import Closed


def sampler_parity(case: Examination) -> Finding:
    """Check that the ODE sampler reaches the stock pipeline's latents from the same noise."""
    name, stock = "sampler parity with the stock pipeline", getattr(case.policy, "stock", None)
    if stock is None:
        return Finding(name, None, "this model has no stock pipeline")
    start = case.policy.noise((0, 0, "start"), range(2))
    plan = Plan(case.plan.steps, window=Closed())
    ours = roll(case.policy, case.prompts, 1, plan, iteration=0, seed=0).x0
    spec: Any = case.recipe.model
    if spec.guided_by == "cfg" and spec.guidance < 1:
        return Finding(name, None, "stock pipelines have no guidance between 0 and 1")
    if spec.tokens and not case.policy.family.length(1):  # type: ignore[attr-defined]
        return Finding(name, None, f"model.tokens = {spec.tokens}, and the stock pipeline has its own number")
    if not stock_grid_matches(case.policy.path, case.plan.steps):
        return Finding(name, None, f"the stock DDIM of {case.plan.steps} steps misses its own grid")
    theirs = stock([prompt.text for prompt in case.prompts], start, case.plan.steps)
    off, limit = _relative(ours, theirs), 1e-4
    if case.runtime.precision != "fp32":
        with case.policy.exact():  # type: ignore[attr-defined]
            exact = roll(case.policy, case.prompts, 1, plan, iteration=0, seed=0).x0
        limit = rounding_limit(_relative(ours, exact), case.plan.steps, case.runtime.dtype)
    return Finding(
        name,
        off <= limit,
        f"latents differ by {off:.1e} of their size, at most {limit:.1e}",
        "the noise levels, their order, the prediction type or the guidance are not the pipeline's: look at "
        "`grpaint show` beside scheduler_config.json",
    )


def rounding_limit(spread: float, steps: int, dtype: torch.dtype) -> float:
    """The largest relative difference of the latents of two correct samplers.

    Each is ``spread`` away from fp32; the stock pipeline also rounds the latents of every step independently, by half
    a unit of ``dtype``.
    """
    return 2 * spread + steps**0.5 * torch.finfo(dtype).eps / 2


def step_noise(case: Examination) -> Finding:
    """Check that noisy steps add standard-normal noise, different for every row."""
    name = "noise of the steps"
    rollout = case.rollout()
    z = torch.stack([(t.x_next - t.mean) / t.std for t in rollout.transitions if t.std > 0]).double()
    power = z.square().mean().item()
    slack = 6 * (2 / z.numel()) ** 0.5
    difference = (z[:, 0] - z[:, 1]).abs().mean().item() / 2**0.5
    return Finding(
        name,
        abs(power - 1) <= slack + 1e-3 and difference > 0.5,
        f"mean square {power:.4f} (1 expected), siblings differ by {difference:.2f} (0.8 expected)",
        "noise is dropped, scaled or shared between the rows of a group: the recorded actions are not what was sampled",
    )


def initial_ratio(case: Examination) -> Finding:
    """Check that recorded actions have the probability ratio 1 before any update."""
    rollout = case.rollout()
    off = [case.replay(rollout, part).expm1().abs().max() for part in rollout.transitions]
    worst = torch.stack(off).max().item()  # max of a tensor with NaN is NaN, unlike max of floats
    limit = 1e-6 if case.runtime.precision == "fp32" else (case.clip or PpoClip().low) / 3
    return Finding(
        "ratio before an update",
        worst <= limit,
        f"off 1 by at most {worst:.1e}, allowed {limit:.1e}",
        "the update does not see what the rollout saw: order of rows, captions, dropout, or weights that changed",
    )


def noise_floor(case: Examination) -> Finding:
    """Check that rounding in batches of another shape moves the log-ratio of each step far less than the clip range."""
    if case.clip is None:
        return Finding("noise floor against the clip range", None, "this recipe clips no ratio")
    rollout = case.rollout()
    worst = []
    for part in rollout.transitions:
        alone = [part.take(index, part.rows[index]) for index in torch.arange(len(part.rows)).split(1)]
        worst.append(torch.cat([case.replay(rollout, row) for row in alone]).abs().max().item())
    limit = case.clip / 3
    by_step = ", ".join(f"{part.step}: {value:.0e}" for part, value in zip(rollout.transitions, worst, strict=True))
    return Finding(
        "noise floor against the clip range",
        all(value <= limit for value in worst),
        f"log-ratio by step {by_step}; a third of the clip range is {limit:.1e}",
        'rounding alone clips: sample and update with equal batches, set precision = "fp32", widen the clip range, or '
        "train steps with more noise",
    )


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).double().norm() / theirs.double().norm()).item()
