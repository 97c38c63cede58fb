"""What both training loops share: the schedule, updates, metrics, evaluations, checkpoints, resume and stop."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import RunError
from grpaint.learn.objective import Term
from grpaint.measures.score import comparable_score
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import Recipe
from grpaint.recipe.optim import learning_rate_factor
from grpaint.recipe.pieces import Model, stateful
from grpaint.recipe.settings import Processes
from grpaint.rollout.rollout import Rollout
from grpaint.run.agreement import (
    check_equal_weights,
    common_signal,
    mean_measures,
    merge_costs,
    merge_times,
    with_anchor,
)
from grpaint.run.alarm import check_hacking, reason_to_stop
from grpaint.run.checkpoint import WeightFiles, read_checkpoint, restore_pieces, weight_files, write_checkpoint
from grpaint.run.folder import RunFolder
from grpaint.run.memory import memory
from grpaint.run.nonfinite import diagnose
from grpaint.run.signals import Listener, Stopped
from grpaint.run.state import check_storable

Line = dict[str, Any]
Terms = Callable[[Rollout, torch.Tensor], Iterable[Term]]  # from a batch and its advantages


class Loop:
    """A run in progress. Every part of the recipe that has a ``state_dict`` is saved and resumed with it.

    ``done`` counts finished iterations; ``best`` is the best comparable score and its iteration; ``watchers`` are
    called with the iteration and every line of metrics and evaluations.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Model,
        folder: RunFolder,
        evaluate: Callable[[int], Line],
        listener: Listener,
        world: World = ONE,
    ) -> None:
        self.recipe, self.policy, self.folder, self.evaluate = recipe, policy, folder, evaluate
        self.listener, self.world, self.pieces = listener, world, stateful(recipe)
        self.parameters = list(policy.parameters())
        self.optimizers = recipe.train.optimizer.make(self.parameters, recipe.train.learning_rate)
        half = policy.runtime.precision == "fp16"  # small gradients would round to 0
        self.scaler = torch.amp.GradScaler(policy.runtime.device, init_scale=2.0**10, enabled=half)
        if half:
            self.pieces["scaler"] = self.scaler
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.done, self.best, self.nonfinite, self._rows = 0, (-math.inf, 0), 0, 0
        self.line: Line = {}
        self.alarm: Line | None = None  # set while the last evaluation shows reward hacking
        self.watchers: list[Callable[[int, Line], None]] = []
        self._times: dict[str, float] = defaultdict(float)

    def iterations(self) -> Iterator[int]:
        """Yield the numbers of the iterations still to do; write lines, evaluations and checkpoints between them.

        Raises:
            RunError: the alarm of reward hacking ends the run.
            Stopped: a signal asked for it; the state was saved.
        """
        every = self.recipe.checkpoint.every
        self._state()  # fail now, not after hours, if a piece's state cannot be saved
        if self.done == 0:
            self._evaluate()
        while not self.finished:
            self._set_rates()
            yield self.done
            self.done += 1
            self._agree()
            self._write_line()
            better = (self.done % self.recipe.evaluate.every == 0 or self.finished) and self._evaluate()
            signal = common_signal(self.listener.requested, self.world)
            hacking_stop = reason_to_stop(self.recipe, self.folder, self.alarm, self.done, self.best[1])
            if better or self.done % every == 0 or self.finished or signal or hacking_stop:
                self.save()
            if hacking_stop:
                raise RunError(hacking_stop)
            if signal and not self.finished:
                raise Stopped(signal)

    @property
    def finished(self) -> bool:
        """Whether all iterations are done or all model evaluations used up."""
        train, used = self.recipe.train, self.policy.meter.counts["training"]
        return self.done >= train.iterations or bool(train.evaluations and used >= train.evaluations)

    def _set_rates(self) -> None:
        train, used = self.recipe.train, self.policy.meter.counts["training"]
        total = max(self.done + 1, train.total(self.done, used))
        factor = learning_rate_factor(train.schedule, train.warmup, self.done, total)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        self.record({"train/learning_rate": train.learning_rate * factor})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's seconds to ``time/NAME_s``.

        Raises:
            MemoryExhausted: the block ran out of memory; it names the phase and what to lower.
        """
        start, cpu_start = time.perf_counter(), time.process_time()
        self.world.phase = name
        try:
            with memory(name):
                yield
        finally:
            self._times[name] += time.perf_counter() - start
            if name != "evaluate":
                self._times["cpu"] += time.process_time() - cpu_start

    def book(self, name: str, seconds: float) -> None:
        """Add the ``seconds`` that another thread spent to ``time/NAME_s``."""
        self._times[name] += seconds

    def _agree(self) -> None:
        """Make costs and times those of all ranks, and check now and then that all have the same weights."""
        self._times, measures = merge_times(self._times, self._rows, self.policy.meter, self.world)
        self.record(measures)
        settings = self.recipe.processes or Processes()
        self.world.limit(settings.limit_s, "processes.limit_s")
        if self.done % settings.check_every == 0:
            check_equal_weights(self.policy.weights.trainable, self.world)

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
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.max_grad_norm)

    def step(self) -> torch.Tensor:
        """Step the optimizers and update the average weights; return the size of the step relative to the weights."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        with torch.no_grad():
            steps = [(now - then).norm() for now, then in zip(self.parameters, before, strict=True)]
            length = torch.stack([then.norm() for then in before]).norm()
            relative = torch.stack(steps).norm() / length.clamp(min=1e-12)
        self.policy.blend("average", self.recipe.train.ema)
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

    def _write_line(self) -> None:
        counts = self.policy.meter.counts
        prefixes = {"": "training", "evaluation_": "evaluation"}
        costs = {f"cost/{prefix}model_evaluations": counts[name] for prefix, name in prefixes.items()}
        times = {f"time/{name}_s": round(value, 4) for name, value in self._times.items()}
        line = {"iteration": self.done} | self.line | self.policy.meter.truncated() | costs | times
        self.folder.append("metrics.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        self.line, self._times, self._rows = {}, defaultdict(float), 0

    def _evaluate(self) -> bool:
        """Evaluate and write the line; return whether it is the best so far and shows no reward hacking."""
        with self.phase("evaluate"):
            line = {"iteration": self.done} | self.evaluate(self.done)
        if self.world.first:
            line, self.alarm = check_hacking(self.recipe, self.folder, line, self.best[1])
        line, self.alarm = self.world.from_first([line, self.alarm])
        merge_costs(self.policy.meter, self.world)
        self.folder.append("evaluations.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        better = comparable_score(line) > self.best[0] and not self.alarm
        if better:
            self.best = (comparable_score(line), self.done)
        return better and self.done > 0

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        self.world.phase, state = "save", self._state()
        self.folder.save(self.done, lambda folder: write_checkpoint(folder, self.files(), state))
        self.folder.thin(self.done, self.recipe.checkpoint.keep, self.best[1])
        self.world.from_first(None)  # no rank ends the run while rank 0 writes

    def files(self) -> WeightFiles:
        """Return the tensors and the header of each weight file of a checkpoint, by file name."""
        return weight_files(self.policy, self.optimizers, self.recipe.checkpoint.precision)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of run.toml when the run began or was resumed; later changes by hand do not count."""
        return self.folder.settings()

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides tensors."""
        state = {
            "iteration": self.done,
            "best": self.best,
            "counts": dict(self.policy.meter.counts),
            "pieces": {name: piece.state_dict() for name, piece in self.pieces.items()},
            # noise, prompts and windows are functions of these two numbers: there is no other random state
            "random": {"seed": self.recipe.train.seed, "iteration": self.done},
            "settings": self.settings,
        }
        check_storable(state, self.pieces)
        return state

    def resume(self, checkpoint: Path) -> None:
        """Restore everything from a checkpoint, and remove what the run wrote after it."""
        state = read_checkpoint(checkpoint, self.policy, self.optimizers)
        self.done, self.best = state["iteration"], tuple(state["best"])
        self.policy.meter.restore(state["counts"])
        restore_pieces(checkpoint, self.pieces, state)
        self.folder.cut(self.done)
        self.folder.thin(self.done, self.recipe.checkpoint.keep, self.best[1])  # a kill may have come before it
