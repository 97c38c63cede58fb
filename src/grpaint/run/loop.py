"""The clockwork that both stages share: resume, schedule, update, record, evaluate, save, stop."""

import contextlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import RunError
from grpaint.learn.objective import Term
from grpaint.measures.hacking import hacking, since, told
from grpaint.measures.score import worth
from grpaint.recipe.config import Recipe, TrainRecipe
from grpaint.recipe.optim import learning_rate_factor, load_tensors, tensors_of
from grpaint.recipe.pieces import Model, stateful
from grpaint.rollout.rollout import Rollout
from grpaint.run import nonfinite
from grpaint.run.folder import RunFolder
from grpaint.run.memory import memory
from grpaint.run.signals import Listener, Stopped
from grpaint.storage.atomic import write_atomic
from grpaint.storage.files import WEIGHTS_FILE, flatten, read_weights, unflatten, write_weights

Line = dict[str, Any]


class Loop:
    """One run in progress. Whatever part of the recipe has a ``state_dict`` is saved and resumed with it."""

    def __init__(
        self,
        recipe: Recipe,
        policy: Model,
        folder: RunFolder,
        evaluate: Callable[[int], Line],
        listener: Listener,
    ) -> None:
        self.recipe, self.policy, self.folder, self.evaluate = recipe, policy, folder, evaluate
        self.listener, self.pieces = listener, stateful(recipe)
        self.parameters = list(policy.parameters())
        self.optimizers = recipe.train.optimizer.make(self.parameters, recipe.train.learning_rate)
        half = policy.runtime.precision == "fp16"  # small gradients would round to 0
        self.scaler = torch.amp.GradScaler(policy.runtime.device, init_scale=2.0**10, enabled=half)
        if half:
            self.pieces["scaler"] = self.scaler
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.done, self.best, self.nonfinite = 0, (-math.inf, 0), 0
        self.line: Line = {}
        self.alarm: Line | None = None  # what the last evaluation said of reward hacking
        self.watchers: list[Callable[[int, Line], None]] = []
        self._times: dict[str, float] = defaultdict(float)

    # -- the loop ------------------------------------------------------------------------------------------------

    def iterations(self) -> Iterator[int]:
        """Iteration numbers from where the run stands; between them lines, evaluations and checkpoints are written."""
        every = self.recipe.checkpoint.every
        if self.done == 0:
            self._state()  # what cannot be saved is better known before hours than after
            self._judge()
        while not self.finished:
            self._set_rates()
            yield self.done
            self.done += 1
            self._write_line()
            better = (self.done % self.recipe.evaluate.every == 0 or self.finished) and self._judge()
            stop = self.listener.asked
            alarmed = self._stops_for_hacking()
            if better or self.done % every == 0 or self.finished or stop or alarmed:
                self.save()
            if alarmed:
                raise RunError(alarmed)
            if stop and not self.finished:
                raise Stopped(stop)

    @property
    def finished(self) -> bool:
        """Whether the iterations are done, or the model evaluations used up."""
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
        """Book the time under ``name``; out of memory inside says what to lower."""
        start, worked = time.perf_counter(), time.process_time()
        try:
            with memory(name):
                yield
        finally:
            self._times[name] += time.perf_counter() - start
            if name != "evaluate":
                self._times["cpu"] += time.process_time() - worked

    def book(self, name: str, seconds: float) -> None:
        """Add to the time under ``name`` what went by beside the loop."""
        self._times[name] += seconds

    # -- one optimizer step --------------------------------------------------------------------------------------

    def update(self, terms: Callable[[], Iterable[Term]], batch: Rollout) -> dict[str, float]:
        """Run backward on each term, then step. No terms, or a gradient that is not finite: nothing moves.

        ``terms`` makes them from ``batch``, again if need be. Returns the mean of every measure, and by step as
        ``name/step``.

        Raises:
            RunError: after ``train.nonfinite`` updates in a row whose gradient was not finite.
        """
        seen = self.backward(terms())
        means = {
            n: (torch.cat(v).max() if "error" in n else torch.cat(v).float().mean()).item() for n, v in seen.items()
        }
        if not seen:
            self.count("train/skipped_updates")
            return means
        norm = self.clip()
        means["grad_norm"] = norm.item()
        if not norm.isfinite():
            self.scaler.update()
            self._nonfinite(terms, batch)
            return means
        self.nonfinite = 0
        means["update_to_weight"] = self.step().item()
        return means

    def backward(self, terms: Iterable[Term]) -> dict[str, list[torch.Tensor]]:
        """Fresh gradients of the terms' sum; what they measured, by name, and by step as ``name/step``."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        seen: dict[str, list[torch.Tensor]] = defaultdict(list)
        for term in terms:
            if not (isinstance(term, Term) and term.loss.ndim == 0 and term.loss.requires_grad):
                raise RunError("objective: it must yield Terms, whose loss is one number with a gradient.")
            self.scaler.scale(term.loss).backward()
            for name, values in term.measures.items():
                seen[name].append(values)
                if term.step >= 0:
                    seen[f"{name}/{term.step}"].append(values)
        return seen

    def clip(self) -> torch.Tensor:
        """The gradient's norm, and the gradient no longer than ``train.max_grad_norm``."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.max_grad_norm)

    def step(self) -> torch.Tensor:
        """Move the weights, and the average after them; the length of the move over the weights'."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        with torch.no_grad():
            moved = [(now - then).norm() for now, then in zip(self.parameters, before, strict=True)]
            length = torch.stack([then.norm() for then in before]).norm()
            share = torch.stack(moved).norm() / length.clamp(min=1e-12)
        self.policy.blend("average", self.recipe.train.ema)
        return share

    def _nonfinite(self, terms: Callable[[], Iterable[Term]], batch: Rollout) -> None:
        """Say where it began and keep the batch; enough of them in a row end the run."""
        if self.scaler.is_enabled() and self.scaler.get_scale() > 1:  # it looks for the scale that fits
            self.count("train/overflows")
            return
        self.count("train/nonfinite_updates")
        self.nonfinite += 1
        with self.policy.meter.account("diagnosis"):
            where = nonfinite.first_module(self.policy.weights.module, terms)
        file = nonfinite.keep(self.folder.path / "nonfinite", self.done, batch, where)
        if self.nonfinite >= self.recipe.train.nonfinite:
            raise RunError(
                f"{self.nonfinite} updates in a row had a gradient that is not finite, first in {where}; the last "
                f"batch is {file}. Lower train.learning_rate, or take more precision; the last checkpoint stays."
            )

    # -- lines ---------------------------------------------------------------------------------------------------

    def record(self, numbers: Line) -> None:
        """Add numbers to this iteration's line."""
        self.line |= numbers

    def count(self, name: str) -> None:
        """Add one to a number of this iteration's line."""
        self.line[name] = self.line.get(name, 0) + 1

    def _write_line(self) -> None:
        costs = {f"cost/{name}": value for name, value in self._costs().items()}
        times = {f"time/{name}_s": round(value, 4) for name, value in self._times.items()}
        line = {"iteration": self.done} | self.line | self.policy.meter.truncated() | costs | times
        self.folder.append("metrics.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        self.line, self._times = {}, defaultdict(float)

    def _costs(self) -> dict[str, int]:
        counts = self.policy.meter.counts
        return {"model_evaluations": counts["training"], "evaluation_model_evaluations": counts["evaluation"]}

    def _judge(self) -> bool:
        """Evaluate, and say whether this is the best so far; what reward hacking brought cannot be."""
        with self.phase("evaluate"):
            line = {"iteration": self.done} | self.evaluate(self.done)
        line |= self._watch(line)
        self.folder.append("evaluations.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        better = worth(line) > self.best[0] and not self.alarm
        if better:
            self.best = (worth(line), self.done)
        return better and self.done > 0

    def _watch(self, line: Line) -> Line:
        """``hacking`` where this evaluation raises the alarm, with the iteration at which it began."""
        judged = self.folder.lines("evaluations.jsonl")
        recipe = self.recipe
        if not judged or not isinstance(recipe, TrainRecipe):
            return {}
        silent = [f"reward/{name}" for name, item in recipe.rewards.items() if not item.weight]
        self.alarm = hacking(judged[0], line, recipe.watch, silent)
        if not self.alarm:
            return {}
        began = since(judged, self.done)
        if began["began"] == self.done:
            self.folder.status(hacking=began | {"best_before": self.best[1]} | self.alarm)
        return {"hacking": began | self.alarm}

    def _stops_for_hacking(self) -> str:
        """The reason to stop, where the last evaluation raised the alarm and ``watch.stop`` asks for it."""
        recipe = self.recipe
        if not (self.alarm and isinstance(recipe, TrainRecipe) and recipe.watch.stop):
            return ""
        kept = self.folder.checkpoints / f"{self.best[1]:06d}" if self.best[1] else "the base itself"
        return (
            f"reward hacking since iteration {self.done}: {told(self.alarm)}. The best before it is {kept}. Mend the "
            "reward, or hold the model closer to the base; watch.stop = false only records it."
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and thin out the old ones."""
        self.folder.save(self.done, self._write_checkpoint)
        self.folder.thin(self.recipe.checkpoint.keep, self.best[1])

    def files(self) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]:
        """The weight files of a checkpoint: tensors and header by name."""
        tensors, header = self.policy.export("average")
        if self.recipe.checkpoint.precision == "fp16":
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        sets = {name: kept for name, kept in self.policy.weights.tensors().items() if name != "reference"}
        sets |= {f"optimizer{n}": tensors_of(optimizer) for n, optimizer in enumerate(self.optimizers)}
        return {WEIGHTS_FILE: (tensors, header), "training.safetensors": (flatten(sets), {})}

    def _state(self) -> str:
        """What a checkpoint keeps beside tensors, as JSON."""
        state = {
            "iteration": self.done,
            "best": self.best,
            "counts": dict(self.policy.meter.counts),
            "pieces": {name: piece.state_dict() for name, piece in self.pieces.items()},
            # noise, prompts and windows are functions of these two numbers; there is no other random state
            "random": {"seed": self.recipe.train.seed, "iteration": self.done},
        }
        try:
            return json.dumps(state) + "\n"
        except TypeError as error:
            raise RunError(f"{', '.join(self.pieces)}: a state_dict cannot be kept as JSON ({error}).") from error

    def _write_checkpoint(self, folder: Path) -> None:
        state = self._state()
        for name, (tensors, header) in self.files().items():
            write_weights(folder / name, tensors, header)
        write_atomic(folder / "state.json", state)

    def resume(self, checkpoint: Path) -> None:
        """Take everything back from a checkpoint, and cut the lines past it."""
        sets = unflatten(read_weights(checkpoint / "training.safetensors")[0])
        self.policy.weights.load(sets)
        for number, optimizer in enumerate(self.optimizers):
            load_tensors(optimizer, sets.get(f"optimizer{number}", {}))
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        self.done, self.best = state["iteration"], tuple(state["best"])
        self.policy.meter.counts = Counter(state["counts"])
        for name, piece in self.pieces.items():
            piece.load_state_dict(state["pieces"][name])
        self.folder.cut(self.done)
