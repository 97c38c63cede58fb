"""``grpaint doctor``: does this recipe, on this machine and this model, do what it must before it can learn anything?

Every check is a function of an :class:`Examination`, usable alone; together they are the conformance suite that a model
family has to pass (a list of them is :data:`CHECKS`).
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from grpaint.backends.runtime import Runtime
from grpaint.core.errors import ConfigError
from grpaint.core.files import WEIGHTS_FILE, write_weights
from grpaint.core.path import VpPath
from grpaint.core.policy import Prompt, Weights
from grpaint.core.step import Ddim, FlowSde, Ode
from grpaint.evaluate import captioned, natural_loss
from grpaint.learn.advantage import GroupNorm
from grpaint.learn.objective import PolicyGradient, Term
from grpaint.learn.surrogate import PpoClip, log_ratio
from grpaint.learn.table import RewardTable
from grpaint.rollout.rollout import Plan, Rollout, Transition, act, roll
from grpaint.rollout.window import Closed, Whole
from grpaint.run.config import TrainRecipe
from grpaint.run.pieces import Model

GROUP = 4


@dataclass(frozen=True)
class Finding:
    """What a check found. ``passed`` is None where it does not apply; ``mend`` is the likely cause and the way out."""

    check: str
    passed: bool | None
    found: str
    mend: str = ""


@dataclass
class Examination:
    """A recipe's model, opened once, and what the checks ask of it. Each check leaves the weights as they were."""

    recipe: TrainRecipe
    policy: Model
    runtime: Runtime

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Two of the recipe's prompts."""
        return self.recipe.data.prompts(2, 0, self.recipe.train.seed)

    @cached_property
    def plan(self) -> Plan:
        """The recipe's sampler with every step noisy, or its path's usual one where the recipe has no noise."""
        sampler = self.recipe.plan.sampler
        if isinstance(sampler, Ode) or not self.recipe.plan.window.reach(self.recipe.plan.steps):
            sampler = Ddim() if isinstance(self.policy.path, VpPath) else FlowSde()
        return Plan(self.recipe.plan.steps, sampler, Whole())

    @property
    def clip(self) -> float | None:
        """The recipe's lower clip range, where it is one of the plain ratio."""
        surrogate = getattr(self.recipe.objective, "surrogate", None)
        return surrogate.low if isinstance(surrogate, PpoClip) else None

    @cached_property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """What learns, by name."""
        return self.policy.weights.trainable

    def rollout(self, iteration: int = 0, group: int = GROUP) -> Rollout:
        """A small rollout."""
        return roll(self.policy, self.prompts, group, self.plan, iteration=iteration, seed=0)

    def replay(self, rollout: Rollout, part: Transition) -> Tensor:
        """The log-ratio of a recorded step, taken again."""
        cond = rollout.cond.rows(part.rows)
        gaussian, _ = act(self.policy, rollout.sampler, part.x, part.here, part.there, cond)
        return log_ratio(gaussian, part).detach()

    def images(self, weights: Weights = "current", count: int = 2 * GROUP) -> Tensor:
        """Samples of the deterministic sampler from fixed noise."""
        prompts = [self.prompts[i % 2] for i in range(count)]
        plan = Plan(self.plan.steps, window=Closed(), weights=weights)
        done = roll(self.policy, prompts, 1, plan, iteration=0, seed=1)
        with torch.no_grad():
            return self.policy.decode(done.x0).float()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give the weights back as they were."""
        before = {name: {k: t.clone() for k, t in sets.items()} for name, sets in self.policy.weights.tensors().items()}
        try:
            yield
        finally:
            self.policy.weights.load(before)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam at ten times the recipe's rate, so that a few updates show."""
        return torch.optim.Adam(self.policy.parameters(), lr=10 * self.recipe.train.learning_rate)

    def learn(self, iterations: int, group: int = GROUP) -> None:
        """GRPO on the brightness of images."""
        optimizer, small = self.optimizer(), getattr(self.recipe.objective, "minibatch", 0)
        for iteration in range(iterations):
            rollout = self.rollout(iteration, group)
            with torch.no_grad():
                bright = self.policy.decode(rollout.x0).float().mean((1, 2, 3)).cpu()
            gains = GroupNorm()(RewardTable({"brightness": bright}), rollout)
            optimizer.zero_grad(set_to_none=True)
            for term in PolicyGradient(minibatch=small)(self.policy, rollout, gains):
                term.loss.backward()
            optimizer.step()


Check = Callable[[Examination], Finding]


def parity(case: Examination) -> Finding:
    """The ODE sampler ends where the stock pipeline ends, from the same noise."""
    name, stock = "sampler parity with the stock pipeline", getattr(case.policy, "stock", None)
    if stock is None:
        return Finding(name, None, "this model has no stock pipeline")
    start = case.policy.noise((0, 0, "start"), range(2))
    plan = Plan(case.plan.steps, window=Closed())
    ours = roll(case.policy, case.prompts, 1, plan, iteration=0, seed=0).x0
    spec: Any = case.recipe.model
    if spec.guided_by == "cfg" and spec.guidance < 1:
        return Finding(name, None, "stock pipelines know no guidance between 0 and 1")
    if spec.tokens and not case.policy.family.length(1):  # type: ignore[attr-defined]
        return Finding(name, None, f"captions are read to {spec.tokens} tokens, the stock pipeline reads 75")
    theirs = stock([prompt.text for prompt in case.prompts], start, case.plan.steps)
    off = _relative(ours, theirs)
    limit = 1e-4 if case.runtime.precision == "fp32" else 0.1
    return Finding(
        name,
        off <= limit,
        f"latents differ by {off:.1e} of their size, at most {limit:.0e}",
        "the noise levels, their order, the prediction type or the guidance are not the pipeline's: look at "
        "`grpaint show` beside scheduler_config.json",
    )


def noise(case: Examination) -> Finding:
    """Noisy steps carry standard-normal noise, another for every row."""
    name = "noise of the steps"
    rollout = case.rollout()
    z = torch.stack([(t.x_next - t.mean) / t.std for t in rollout.transitions if t.std > 0]).double()
    power = z.square().mean().item()
    slack = 6 * (2 / z.numel()) ** 0.5
    apart = (z[:, 0] - z[:, 1]).abs().mean().item() / 2**0.5
    return Finding(
        name,
        abs(power - 1) <= slack + 1e-3 and apart > 0.5,
        f"mean square {power:.4f} (1 expected), siblings differ by {apart:.2f} (0.8 expected)",
        "noise is dropped, scaled or shared between the rows of a group: the recorded actions are not what was sampled",
    )


def ratio(case: Examination) -> Finding:
    """A step taken again before any update has the ratio 1."""
    rollout = case.rollout()
    worst = max(case.replay(rollout, part).expm1().abs().max().item() for part in rollout.transitions)
    limit = 1e-6 if case.runtime.precision == "fp32" else (case.clip or PpoClip().low) / 3
    return Finding(
        "ratio before an update",
        worst <= limit,
        f"off 1 by at most {worst:.1e}, allowed {limit:.1e}",
        "the update does not see what the rollout saw: order of rows, captions, dropout, or weights that changed",
    )


def floor(case: Examination) -> Finding:
    """Where batches have other shapes, rounding stays far below the clip range at each step."""
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
        max(worst) <= limit,
        f"log-ratio by step {by_step}; a third of the clip range is {limit:.1e}",
        'rounding alone clips: sample and update with equal batches, set precision = "fp32", widen the clip range, or '
        "train steps with more noise",
    )


def gradients(case: Examination) -> Finding:
    """Every trainable tensor gets a gradient (a second matrix of an adapter has to leave its zeros first)."""
    name = "gradients reach every trainable tensor"
    if not any(p.requires_grad for p in case.trainable.values()):
        return Finding(
            name, False, "nothing is trainable", "the adapter or the network is frozen: requires_grad is off"
        )
    with case.kept():
        case.learn(2)
        dead = [key for key, p in case.trainable.items() if p.grad is None or not p.grad.any()]
        wild = [key for key, p in case.trainable.items() if p.grad is not None and not p.grad.isfinite().all()]
        for p in case.trainable.values():
            p.grad = None
    said = f"{len(case.trainable) - len(dead)} of {len(case.trainable)} tensors"
    if wild:
        said += f", {len(wild)} with NaN or infinity, for example {wild[0]}"
    return Finding(
        name,
        not dead and not wild,
        said + (f"; none in {dead[0]}" if dead else ""),
        "layers that are frozen, or whose output nothing reads: name others in model.lora.targets; NaN: precision",
    )


def moves(case: Examination) -> Finding:
    """An update changes the weights, and through them the samples; the reference stays."""
    with case.kept():
        before, base = _copies(case), case.images("reference", 2)
        case.learn(2)
        moved = sum(not torch.equal(t, before[key]) for key, t in _copies(case).items())
        same = torch.equal(case.images("reference", 2), base)
        told = not torch.equal(case.images("current", 2), base)
    return Finding(
        "weights move, the reference does not",
        moved == len(before) and told and same,
        f"{moved} of {len(before)} tensors moved, samples {'changed' if told else 'did not change'}, the reference "
        f"{'stayed' if same else 'changed'}",
        "the optimizer holds other tensors than the network, or the adapter is not switched on and off",
    )


def average(case: Examination) -> Finding:
    """The running average follows the weights."""
    with case.kept():
        case.learn(1)
        case.policy.blend("average", 0.0)
        same = torch.equal(case.images("average", 2), case.images("current", 2))
        there = {key: t.clone() for key, t in case.policy.weights.copies["average"].items()}
        case.learn(1)
        case.policy.blend("average", 0.5)
        now = _copies(case)
        halves = [(there[key] + now[key]) / 2 for key in now]
        off = max(
            (case.policy.weights.copies["average"][key] - half).abs().max().item()
            for key, half in zip(now, halves, strict=True)
        )
    return Finding(
        "running average",
        same and off <= 1e-6,
        f"{'equals' if same else 'differs from'} the weights that it was set to; halfway off by {off:.0e}",
        "the average is stale: blend() does not reach it, and what is evaluated and exported is an older model",
    )


def fits(case: Examination, iterations: int = 12) -> Finding:
    """A few supervised updates on white images lower their denoising loss at other noise."""
    loss, prompts = natural_loss(case.policy.path), case.prompts * 4
    white = torch.ones_like(case.images(count=1)).cpu().expand(len(prompts), -1, -1, -1)

    def terms(iteration: int) -> Iterator[Term]:
        batch = captioned(case.policy, white, prompts, iteration=iteration, seed=0)
        return loss(case.policy, batch, torch.zeros(len(prompts)))

    def measured() -> float:
        with torch.no_grad():
            return sum(term.loss.item() for iteration in range(4) for term in terms(10**6 + iteration)) / 4

    with case.kept():
        before, optimizer = measured(), case.optimizer()
        for iteration in range(iterations):
            optimizer.zero_grad(set_to_none=True)
            for term in terms(iteration):
                term.loss.backward()
            optimizer.step()
        after = measured()
    return Finding(
        "SFT lowers the denoising loss",
        after < before,
        f"{before:.4f} -> {after:.4f} on white images after {iterations} updates",
        "the prediction type or the noise schedule is not the model's, or the learning rate is ten times too high",
    )


def learns(case: Examination, iterations: int = 12, group: int = 16) -> Finding:
    """A few GRPO updates make images brighter where brightness is the reward."""
    with case.kept():
        before = case.images(count=16).mean((1, 2, 3))
        case.learn(iterations, group)
        gain = case.images(count=16).mean((1, 2, 3)) - before
    mean, error = gain.mean().item(), (gain.std() / len(gain) ** 0.5).item()
    return Finding(
        "GRPO raises a synthetic reward",
        mean > 2 * error,
        f"brightness {mean:+.4f} +- {error:.4f} after {iterations} updates",
        "the sign of the advantage or of the log-probability, prompts and rows that do not belong together, or a "
        "learning rate ten times of which still does nothing",
    )


def reload(case: Examination) -> Finding:
    """What is exported makes the same images after it is loaded again."""
    with case.kept(), tempfile.TemporaryDirectory() as place:
        base = case.images(count=2)
        case.learn(2)
        tuned = case.images(count=2)
        write_weights(FilePath(place) / WEIGHTS_FILE, *case.policy.export("current"))
        again = case.recipe.model.from_file(place).load(case.runtime)
        again.guidance = case.policy.guidance
        loaded = dataclasses.replace(case, policy=again).images(count=2)
    off, moved = (loaded - tuned).abs().mean().item(), (tuned - base).abs().mean().item()
    return Finding(
        "the saved file reloads to the same image",
        off <= max(1e-5, 0.05 * moved),
        f"pixels off by {off:.1e} where training moved them by {moved:.1e}",
        "names, scale (alpha / rank) or precision of the exported tensors are not what the loader reads",
    )


CHECKS: tuple[Check, ...] = (parity, noise, ratio, floor, gradients, moves, average, fits, learns, reload)


def examine(recipe: TrainRecipe, runtime: Runtime, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Open the recipe's model and run the checks, one after another.

    Raises:
        ConfigError, CheckpointError: where the model cannot be opened.
    """
    case = Examination(recipe, recipe.model.load(runtime), runtime)
    with case.policy.meter.account("doctor"):
        for check in checks:
            try:
                yield check(case)
            except ConfigError:
                raise
            except Exception as error:  # a check that cannot be carried out is a finding too
                said = " ".join(str(error).split())[:200]
                yield Finding(check.__name__, False, f"{type(error).__name__}: {said}", "it could not be carried out")


def _copies(case: Examination) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in case.trainable.items()}


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).double().norm() / theirs.double().norm()).item()
