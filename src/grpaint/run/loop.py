"""The clockwork that both stages share: resume, schedule, update, record, evaluate, save, stop."""

import contextlib
import json
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from grpaint.backends.files import WEIGHTS_FILE, flatten, read_weights, unflatten, write_weights
from grpaint.core.errors import MemoryExhausted
from grpaint.learn.objective import Term
from grpaint.run.config import Recipe
from grpaint.run.folder import RunFolder
from grpaint.run.optim import learning_rate_factor
from grpaint.run.pieces import Model

Line = dict[str, Any]

LOWER = {
    "rollout": "train.prompts, train.group_size or model.batch",
    "reward": "train.prompts or train.group_size",
    "update": "objective.minibatch",
    "evaluate": "evaluate.prompts or model.batch",
}


class Stopped(Exception):
    """Raised after a checkpoint when a signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Loop:
    """One run in progress. ``pieces`` are the parts of the recipe that carry state, by name."""

    def __init__(
        self,
        recipe: Recipe,
        policy: Model,
        folder: RunFolder,
        evaluate: Callable[[int], Line],
        pieces: dict[str, Any],
    ) -> None:
        self.recipe, self.policy, self.folder, self.evaluate = recipe, policy, folder, evaluate
        self.pieces = {name: piece for name, piece in pieces.items() if hasattr(piece, "state_dict")}
        self.parameters = list(policy.parameters())
        self.optimizers = recipe.train.optimizer.make(self.parameters, recipe.train.learning_rate)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.done, self.best = 0, (-math.inf, 0)
        self.line: Line = {}
        self.watchers: list[Callable[[int, Line], None]] = []
        self._asked_to_stop = 0
        self._times: dict[str, float] = defaultdict(float)

    # -- the loop ------------------------------------------------------------------------------------------------

    def iterations(self) -> Iterator[int]:
        """Iteration numbers from where the run stands; between them lines, evaluations and checkpoints are written."""
        total, every = self.recipe.train.iterations, self.recipe.checkpoint.every
        with self._listening():
            if self.done == 0:
                self._judge()
            while self.done < total:
                self._set_rates()
                yield self.done
                self.done += 1
                self._write_line()
                better = (self.done % self.recipe.evaluate.every == 0 or self.done == total) and self._judge()
                if better or self.done % every == 0 or self.done == total or self._asked_to_stop:
                    self.save()
                if self._asked_to_stop and self.done < total:
                    raise Stopped(self._asked_to_stop)

    def _set_rates(self) -> None:
        train = self.recipe.train
        factor = learning_rate_factor(train.schedule, train.warmup, self.done, train.iterations)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        self.record({"train/learning_rate": train.learning_rate * factor})

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the iteration, save and stop; a second one stops at once."""

        def ask(number: int, _frame: FrameType | None) -> None:
            if self._asked_to_stop:
                raise KeyboardInterrupt
            self._asked_to_stop = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time under ``name``; out of memory inside says what to lower."""
        start = time.perf_counter()
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise MemoryExhausted(f"out of memory in {name}: lower {LOWER[name]}. The run can be resumed.") from error
        finally:
            self._times[name] += time.perf_counter() - start

    # -- one optimizer step --------------------------------------------------------------------------------------

    def update(self, terms: Iterable[Term]) -> dict[str, float]:
        """Run backward on each term, then step. No terms, or a gradient that is not finite: nothing moves.

        Returns the mean of every measure, and by step as ``name/step``.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        seen: dict[str, list[torch.Tensor]] = defaultdict(list)
        for term in terms:
            term.loss.backward()
            for name, values in term.measures.items():
                seen[name].append(values)
                if term.step >= 0:
                    seen[f"{name}/{term.step}"].append(values)
        means = {n: (torch.cat(v).max() if "error" in n else _mean(torch.cat(v))).item() for n, v in seen.items()}
        if not seen:
            self.count("train/skipped_updates")
            return means
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.max_grad_norm)
        means["grad_norm"] = norm.item()
        if not norm.isfinite():
            self.count("train/nonfinite_updates")
            return means
        before = [parameter.detach().clone() for parameter in self.parameters]
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            moved = [(now - then).norm() for now, then in zip(self.parameters, before, strict=True)]
            means["update_to_weight"] = (_norm(moved) / _norm([then.norm() for then in before]).clamp(min=1e-12)).item()
        self.policy.blend("average", self.recipe.train.ema)
        return means

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
        line = {"iteration": self.done} | self.line | costs | times
        self.folder.append("metrics.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        self.line, self._times = {}, defaultdict(float)

    def _costs(self) -> dict[str, int]:
        counts = self.policy.meter.counts
        return {"model_evaluations": counts["training"], "evaluation_model_evaluations": counts["evaluation"]}

    def _judge(self) -> bool:
        """Evaluate, and say whether this is the best so far."""
        with self.phase("evaluate"):
            line = {"iteration": self.done} | self.evaluate(self.done)
        self.folder.append("evaluations.jsonl", line)
        for watcher in self.watchers:
            watcher(self.done, line)
        better = line["strict"] > self.best[0]
        if better:
            self.best = (line["strict"], self.done)
        return better and self.done > 0

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and thin out the old ones."""
        self.folder.save(self.done, self._write_checkpoint)
        self.folder.thin(self.recipe.checkpoint.keep, self.best[1])

    def _write_checkpoint(self, folder: Path) -> None:
        tensors, header = self.policy.export("average")
        if self.recipe.checkpoint.precision == "fp16":
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        write_weights(folder / WEIGHTS_FILE, tensors, header)
        sets = {name: kept for name, kept in self.policy.weights.tensors().items() if name != "reference"}
        states = [_tensors_of(optimizer) for optimizer in self.optimizers]
        write_weights(
            folder / "training.safetensors",
            flatten(sets | {f"optimizer{n}": state for n, state in enumerate(states)}),
        )
        state = {
            "iteration": self.done,
            "best": self.best,
            "counts": dict(self.policy.meter.counts),
            "pieces": {name: piece.state_dict() for name, piece in self.pieces.items()},
            # noise, prompts and windows are functions of these two numbers; there is no other random state
            "random": {"seed": self.recipe.train.seed, "iteration": self.done},
        }
        (folder / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Take everything back from a checkpoint, and cut the lines past it."""
        sets = unflatten(read_weights(checkpoint / "training.safetensors")[0])
        self.policy.weights.load(sets)
        for number, optimizer in enumerate(self.optimizers):
            _load_tensors(optimizer, sets.get(f"optimizer{number}", {}))
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        self.done, self.best = state["iteration"], tuple(state["best"])
        self.policy.meter.counts.update(state["counts"])
        for name, piece in self.pieces.items():
            piece.load_state_dict(state["pieces"][name])
        self.folder.cut(self.done)


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.float().mean()


def _norm(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(norms)).norm()


def _tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _load_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
