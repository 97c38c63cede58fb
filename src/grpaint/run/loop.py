"""What both training loops share: the schedule, updates, metrics, evaluations, checkpoints, resume and stop."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from grpaint.core.errors import RunError
from grpaint.learn.objective import Term
from grpaint.measures.score import comparable_score, deciding_line
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import Recipe
from grpaint.recipe.optim import learning_rate_factor
from grpaint.recipe.pieces import Model, stateful
from grpaint.recipe.scalars import WHOLE
from grpaint.recipe.settings import Processes
from grpaint.rollout.rollout import Rollout
from grpaint.run.agreement import (
    check_equal_weights,
    common_signal,
    merge_costs,
    merge_times,
)
from grpaint.run.alarm import check_hacking, reason_to_stop
from grpaint.run.checkpoint import (
    WeightFiles,
    help_write,
    read_checkpoint,
    restore_pieces,
    weight_files,
    write_checkpoint,
)
from grpaint.run.folder import RunFolder
from grpaint.run.memory import memory, peak_mib
from grpaint.run.pictures import Drawing, RolloutImages
from grpaint.run.signals import Listener, Stopped
from grpaint.run.state import check_storable
from grpaint.run.updates import Line, Updates

Terms = Callable[[Rollout, torch.Tensor], Iterable[Term]]  # from a batch and its advantages


JUDGING = ("evaluate", "pictures")  # phases whose processor seconds are not those of training


class Judge(Protocol):
    """Judges the model on held-out prompts; on many ranks all call it at the same time."""

    def evaluate(self, iteration: int) -> tuple[Line, Drawing]:
        """Return the line of an evaluation, without its iteration, and the first of its images."""

    def draw(self) -> Drawing:
        """Draw the first held-out prompts alone."""


class Loop(Updates):
    """A run in progress. Every part of the recipe that has a ``state_dict`` is saved and resumed with it.

    ``done`` counts finished iterations; ``best`` is the best comparable score and its iteration; ``watchers`` are
    called with the iteration and every line of metrics and evaluations, ``viewers`` with every drawing of held-out
    prompts, after an evaluation's line.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Model,
        folder: RunFolder,
        judge: Judge,
        listener: Listener,
        world: World = ONE,
    ) -> None:
        super().__init__(recipe, policy, folder, world)
        self.judge, self.listener, self.pieces = judge, listener, stateful(recipe)
        if self.scaler.is_enabled():
            self.pieces["scaler"] = self.scaler
        self.best = (-math.inf, 0)
        self.alarm: Line | None = None  # set while the last evaluation shows reward hacking
        self.watchers: list[Callable[[int, Line], None]] = []
        self.viewers: list[Callable[[int, Drawing], None]] = []
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
            judged = self.finished or self.done % self.recipe.evaluate.every == 0
            better = judged and self._evaluate()
            if not judged and self._draws(self.done):
                self._draw()
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

    @property
    def drawing_follows(self) -> bool:
        """Whether held-out pictures are drawn after the iteration under way, as far as is known before it."""
        number, settings = self.done + 1, self.recipe.evaluate
        last = number == self.recipe.train.iterations or number % settings.every == 0
        return settings.pictures > 0 and (last or self._draws(number))

    def _draws(self, iteration: int) -> bool:
        settings = self.recipe.evaluate
        return bool(settings.pictures and settings.pictures_every) and iteration % settings.pictures_every == 0

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
            if name not in JUDGING:
                self._times["cpu"] += time.process_time() - cpu_start

    def book(self, name: str, seconds: float) -> None:
        """Add the ``seconds`` that another thread spent to ``time/NAME_s``."""
        self._times[name] += seconds

    def _agree(self) -> None:
        """Make costs and times those of all ranks, and check now and then that all have the same weights."""
        peak = peak_mib(self.policy.runtime.device)
        self._times, measures = merge_times(self._times, peak, self._rows, self.policy.meter, self.world)
        self.record(measures)
        settings = self.recipe.processes or Processes()
        self.world.limit(settings.limit_s, "processes.limit_s")
        if self.done % settings.check_every == 0:
            check_equal_weights(self.policy.weights.trainable, self.world)

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
            line, drawing = self.judge.evaluate(self.done)
            line = {"iteration": self.done} | line
        if self.world.first:
            line, self.alarm = check_hacking(self.recipe, self.folder, line, self.best[1])
        line, self.alarm = self.world.from_first([line, self.alarm])
        merge_costs(self.policy.meter, self.world)
        self.folder.append("evaluations.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        self._show(drawing)
        score = comparable_score(deciding_line(line))
        better = score > self.best[0] and not self.alarm
        if better:
            self.best = (score, self.done)
        return better and self.done > 0

    def _draw(self) -> None:
        """Draw held-out prompts between evaluations."""
        with self.phase("pictures"):
            drawing = self.judge.draw()
        merge_costs(self.policy.meter, self.world)
        self._show(drawing)

    def add_rollout(self, rollout: RolloutImages) -> None:
        """Save the images of the iteration under way."""
        self.folder.add_rollout(self.done + 1, rollout)

    def _show(self, drawing: Drawing) -> None:
        """Save a drawing's pictures, and pass them on."""
        with self.phase("pictures"):
            if len(drawing.images):
                self.folder.add_drawing(self.done, drawing)
            for viewer in self.viewers:
                viewer(self.done, drawing)

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        self.world.phase, state = "save", self._state()
        self.folder.save(self.done, lambda folder: write_checkpoint(folder, self.files(), state))
        if self.world.shares_weights and not self.world.first:
            help_write(self.files())
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
            "steps": self.steps,
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
        self.steps = state.get("steps", WHOLE)  # a checkpoint without it is of 0.1, whose average had no warm-up
        self.policy.meter.restore(state["counts"])
        restore_pieces(checkpoint, self.pieces, state)
        self.folder.cut(self.done)
        self.folder.thin(self.done, self.recipe.checkpoint.keep, self.best[1])  # a kill may have come before it
