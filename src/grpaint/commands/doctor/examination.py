"""The model under examination, which every check takes, and the finding, which it returns."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grpaint.core.path import VpPath
from grpaint.core.policy import Prompt, Weights
from grpaint.core.runtime import Runtime
from grpaint.core.step import Ddim, FlowSde, Ode
from grpaint.learn.advantage import GroupNorm
from grpaint.learn.objective import PolicyGradient, Term
from grpaint.learn.surrogate import PpoClip, log_ratio
from grpaint.learn.table import RewardTable
from grpaint.recipe.config import TrainRecipe
from grpaint.recipe.pieces import Model
from grpaint.recipe.trust import ExaminedRecipe
from grpaint.rollout.rollout import Plan, Rollout, Transition, act, roll
from grpaint.rollout.window import Closed, Whole

GROUP = 4


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    ``passed`` is None if the check does not apply; ``evidence`` is the measurement, ``fix`` the likely cause of a
    failure and the way out.
    """

    check: str
    passed: bool | None
    evidence: str
    fix: str = ""

    def plain(self) -> dict[str, str | bool | None]:
        """The finding as ``grpaint doctor --json`` prints it."""
        return {"check": self.check, "passed": self.passed, "found": self.evidence, "mend": self.fix}


@dataclass
class Examination:
    """A recipe's model, loaded once, with the samples and updates that checks need; checks restore its weights."""

    recipe: TrainRecipe | ExaminedRecipe
    policy: Model
    runtime: Runtime

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Two of the recipe's prompts."""
        return self.recipe.data.prompts(2, 0, self.recipe.train.seed)

    @cached_property
    def plan(self) -> Plan:
        """The recipe's sampler with every step but the last noisy, or the usual one of its path if it adds no noise.

        A recipe of one step is examined in two, since one has no likelihood.
        """
        sampler = self.recipe.plan.sampler
        if isinstance(sampler, Ode) or not self.recipe.plan.window.reach(self.recipe.plan.steps):
            sampler = Ddim() if isinstance(self.policy.path, VpPath) else FlowSde()
        return Plan(max(self.recipe.plan.steps, 2), sampler, Whole())

    @property
    def clip(self) -> float | None:
        """The recipe's lower clip range; None unless its surrogate is PPO's clipped ratio."""
        surrogate = getattr(self.recipe.objective, "surrogate", None)
        return surrogate.low if isinstance(surrogate, PpoClip) else None

    @cached_property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name."""
        return self.policy.weights.trainable

    def rollout(self, iteration: int = 0, group: int = GROUP) -> Rollout:
        """Sample a small rollout of ``group`` images per prompt."""
        return roll(self.policy, self.prompts, group, self.plan, iteration=iteration, seed=0)

    def replay(self, rollout: Rollout, part: Transition) -> Tensor:
        """The log-ratio ``[b]`` of recorded actions under the current weights."""
        cond = rollout.cond.rows(part.rows)
        gaussian, _ = act(self.policy, rollout.sampler, part.x, part.here, part.there, cond)
        return log_ratio(gaussian, part).detach()

    def images(self, weights: Weights = "current", count: int = 2 * GROUP) -> Tensor:
        """Images ``[count, 3, h, w]`` of the deterministic sampler from fixed noise."""
        prompts = [self.prompts[i % 2] for i in range(count)]
        plan = Plan(self.plan.steps, window=Closed(), weights=weights)
        rollout = roll(self.policy, prompts, 1, plan, iteration=0, seed=1)
        with torch.no_grad():
            return self.policy.decode(rollout.x0).float()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the weights on exit."""
        before = {name: {k: t.clone() for k, t in sets.items()} for name, sets in self.policy.weights.tensors().items()}
        try:
            yield
        finally:
            self.policy.weights.load(before)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam at ten times the recipe's learning rate, so that a few updates have an effect."""
        return torch.optim.Adam(self.policy.parameters(), lr=10 * self.recipe.train.learning_rate)

    def scaler(self) -> torch.amp.GradScaler:
        """The gradient scaler of a run; without it small gradients would round to 0 in fp16."""
        return torch.amp.GradScaler(self.runtime.device, init_scale=2.0**10, enabled=self.runtime.precision == "fp16")

    def learn(self, iterations: int, group: int = GROUP) -> None:
        """Train a few iterations of GRPO with the brightness of images as reward."""
        optimizer, scaler, small = self.optimizer(), self.scaler(), getattr(self.recipe.objective, "minibatch", 0)
        for iteration in range(iterations):
            rollout = self.rollout(iteration, group)
            with torch.no_grad():
                bright = self.policy.decode(rollout.x0).float().mean((1, 2, 3)).cpu()
            advantages = GroupNorm()(RewardTable({"brightness": bright}), rollout)
            update(optimizer, scaler, PolicyGradient(minibatch=small)(self.policy, rollout, advantages))


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, terms: Iterable[Term]) -> None:
    """Take one optimizer step on the sum of the terms; skip it if fp16 overflows."""
    optimizer.zero_grad(set_to_none=True)
    for term in terms:
        scaler.scale(term.loss).backward()
    scaler.step(optimizer)
    scaler.update()


Check = Callable[[Examination], Finding]
