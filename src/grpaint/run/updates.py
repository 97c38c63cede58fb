"""An update of the weights: backward on each term, the sum over ranks, clipping, and the optimizer's step."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch

from grpaint.core.errors import RunError
from grpaint.learn.objective import Term
from grpaint.parallel.world import World
from grpaint.recipe.config import Recipe
from grpaint.recipe.optim import average_keep
from grpaint.recipe.pieces import Model
from grpaint.rollout.rollout import Rollout
from grpaint.run.agreement import mean_measures, with_anchor
from grpaint.run.folder import RunFolder
from grpaint.run.nonfinite import diagnose

Line = dict[str, Any]
Terms = Callable[[Rollout, torch.Tensor], Iterable[Term]]  # from a batch and its advantages


class Updates:
    """The part of a run that changes weights.

    ``done`` counts finished iterations, ``steps`` the optimizer steps that moved the weights, ``nonfinite`` the updates
    in a row whose gradient was not finite; ``line`` is this iteration's line of metrics.jsonl as far as it is known.
    """

    def __init__(self, recipe: Recipe, policy: Model, folder: RunFolder, world: World) -> None:
        self.recipe, self.policy, self.folder, self.world = recipe, policy, folder, world
        self.parameters = list(policy.parameters())
        self.optimizers = recipe.train.optimizer.make(self.parameters, recipe.train.learning_rate)
        half = policy.runtime.precision == "fp16"  # small gradients would round to 0
        self.scaler = torch.amp.GradScaler(policy.runtime.device, init_scale=2.0**10, enabled=half)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.done, self.steps, self.nonfinite, self._rows = 0, 0, 0, 0
        self.line: Line = {}

    def update(
        self, terms: Terms, batch: Rollout, advantage: torch.Tensor, anchor: Callable[[], Iterable[Term]] = tuple
    ) -> dict[str, float]:
        """Run backward on each term, and on each of ``anchor`` if there were any, then take an optimizer step.

        Nothing moves if there are no terms or the gradient is not finite; then ``terms`` is called again to find where.
        Returns the mean of each measure, or the maximum if its name contains "error"; also by step, as ``name/step``.

        Raises:
            RunError: ``train.nonfinite`` updates in a row had a gradient that was not finite.
        """
        self._rows += len(batch.group)
        means = mean_measures(self.backward(with_anchor(terms(batch, advantage), anchor, self.world)), self.world)
        if not means:
            self.count("train/skipped_updates")
            return means
        self.world.sum_gradients(self.parameters)
        norm = self.clip()
        means["grad_norm"] = norm.item()
        if not norm.isfinite():
            self.scaler.update()
            self._handle_nonfinite(lambda: chain(terms(batch, advantage), anchor()), batch)
            return means
        self.nonfinite = 0
        means["update_to_weight"] = self.step().item()
        return means

    def backward(self, terms: Iterable[Term]) -> dict[str, list[torch.Tensor]]:
        """Compute the gradient of the terms' sum; return their measures by name, and by step as ``name/step``."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        measures: dict[str, list[torch.Tensor]] = defaultdict(list)
        for term in terms:
            if not (isinstance(term, Term) and term.loss.ndim == 0 and term.loss.requires_grad):
                raise RunError("objective: it must yield Terms, whose loss is one number with a gradient.")
            self.scaler.scale(term.loss).backward()
            for name, values in term.measures.items():
                measures[name].append(values)
                if term.step >= 0:
                    measures[f"{name}/{term.step}"].append(values)
        return measures

    def clip(self) -> torch.Tensor:
        """Clip the gradient to ``train.max_grad_norm`` and return the norm that it had."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = self.world.norm(torch.nn.utils.get_total_norm(gradients))
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.train.max_grad_norm, norm)
        return norm

    def step(self) -> torch.Tensor:
        """Step the optimizers and update the average weights; return the size of the step relative to the weights."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        with torch.no_grad():
            steps = [(now - then).norm() for now, then in zip(self.parameters, before, strict=True)]
            length = self.world.norm(torch.stack([then.norm() for then in before]).norm())
            relative = self.world.norm(torch.stack(steps).norm()) / length.clamp(min=1e-12)
        self.steps += 1
        train = self.recipe.train
        self.policy.blend("average", average_keep(train.ema, self.steps), train.extrapolation)
        return relative

    def _handle_nonfinite(self, terms: Callable[[], Iterable[Term]], batch: Rollout) -> None:
        """Find where the gradient stopped being finite, save the batch, and end the run after too many in a row.

        While the fp16 loss scaler can still lower its scale, the overflow is only counted.
        """
        if self.scaler.is_enabled() and self.scaler.get_scale() > 1:  # the scaler is still looking for its scale
            self.count("train/overflows")
            return
        self.count("train/nonfinite_updates")
        self.nonfinite += 1
        with self.policy.meter.account("diagnosis"):
            where, file = diagnose(self.policy.weights.module, terms, batch, self.folder, self.done, self.world)
        if self.nonfinite >= self.recipe.train.nonfinite:
            raise RunError(
                f"{self.nonfinite} updates in a row had a gradient that is not finite, first in {where}; the last "
                f"batch is {file}. Lower train.learning_rate, or raise precision; the last checkpoint stays."
            )

    def record(self, numbers: Line) -> None:
        """Add numbers to this iteration's line of metrics.jsonl."""
        self.line |= numbers

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter in this iteration's line of metrics.jsonl."""
        self.line[name] = self.line.get(name, 0) + number
