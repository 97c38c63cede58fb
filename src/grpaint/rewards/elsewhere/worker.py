"""Rewards in a worker process with an interpreter, and therefore packages, of its own."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.rewards.elsewhere.client import Failed
from grpaint.rewards.elsewhere.process import Process, WorkerDied
from grpaint.rewards.elsewhere.wire import answer_limit, pack, read_scores

ImageForm = Literal["pil", "numpy", "raw"]


@dataclass(kw_only=True)
class WorkerReward:
    """Base class of rewards that are computed in a worker process.

    ``python`` is the interpreter, by default this process's own. ``images`` is the form in which the function takes
    them: PIL images, numpy ``[h, w, 3]`` uint8, or (width, height, bytes). A worker that dies, or takes longer than
    ``timeout_s`` for a batch and is therefore killed, is started again and gets the batch again, up to ``restarts``
    times. Loading may take ``start_s``. ``call_mode``: "batch" calls function(images, prompts, metadata), "each"
    function(image).
    """

    python: str | None = None
    images: ImageForm = "pil"
    batch: int = 32
    timeout_s: float = 300.0
    start_s: float = 600.0
    restarts: int = 2
    _process: Process | None = field(default=None, init=False, repr=False, compare=False)

    call_mode: ClassVar[Literal["batch", "each"]] = "each"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if not 0 <= self.restarts <= 100:
            raise ValueError(f"restarts must lie in 0..100, got {self.restarts}")
        for name in ("timeout_s", "start_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(f"{name} must lie in (0, 86400], got {getattr(self, name)}")

    def target(self) -> str:
        """The function that the worker runs, as file.py:name or module:name."""
        raise NotImplementedError

    def start(self) -> list[str]:
        """Start the process, wait until its function is loaded, and return a note for the run's log.

        Raises:
            RewardError: if it does not start.
        """
        self.stop()
        module, _, name = self.target().rpartition(":")
        if module.endswith(".py"):
            module = str(Path(module).resolve())
        python = self.python or sys.executable
        try:
            self._process = Process(python, [f"{module}:{name}", self.call_mode, self.images], self.start_s)
        except Failed as error:
            raise RewardError(
                f"its worker ({python}) did not start: {error}. Fix that and continue with --resume."
            ) from error
        return [f"worker runs {self.target()} under Python {self._process.greeting.get('ready')} ({python})"]

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            process.stop()

    def values(self, images: Tensor, prompts: Sequence[Prompt], limit: int = 1 << 20) -> list[Any]:
        """The worker's value for each image, in batches; an answer may have ``limit`` bytes an image.

        Raises:
            RewardError: if the function raises, or the worker fails more than ``restarts`` times on a batch.
        """
        values: list[Any] = []
        for rows in torch.arange(len(images)).split(self.batch):
            batch_prompts = [Prompt(prompts[i].text, prompts[i].metadata) for i in rows.tolist()]
            body = pack(images[rows], batch_prompts, "uint8")
            batch_values = self._call(body, answer_limit(len(rows)) + limit * len(rows))
            if len(batch_values) != len(rows):
                raise RewardError(f"its worker gave {len(batch_values)} values for {len(rows)} images")
            values += batch_values
        return values

    def _call(self, body: bytes, limit: int) -> list[Any]:
        for restarts_left in reversed(range(self.restarts + 1)):
            if not self._process:
                self.start()
            assert self._process
            try:
                return self._process.call(body, self.timeout_s, limit)
            except WorkerDied as error:
                self.stop()
                if not restarts_left:
                    raise RewardError(
                        f"its worker failed {self.restarts + 1} times on the same batch: {error}. Fix it and "
                        "continue with --resume."
                    ) from error
            except Failed as error:
                raise RewardError(f"its worker: {error}. Fix it and continue with --resume.") from error
        raise AssertionError("restarts is not negative")


@dataclass(kw_only=True)
class Worker(WorkerReward):
    """Your function ``f(images, prompts, metadata)`` under an interpreter of its own; it returns one score per image.

    ``reward`` is ``file.py:f`` or ``module:f``. Images are rounded to 256 levels; ``prompts`` are texts, and
    ``metadata`` is that of the prompts, without what JSON cannot hold.
    """

    reward: str

    call_mode: ClassVar[Literal["batch", "each"]] = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_target("reward", self.reward)

    def target(self) -> str:
        return self.reward

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        try:
            return torch.tensor(read_scores({"scores": self.values(images, prompts, 64)}, len(images)))
        except Failed as error:
            raise RewardError(f"its worker: {error}") from error


def check_target(name: str, target: str) -> None:
    """Refuse a setting ``name`` whose value ``target`` names no function.

    Raises:
        ValueError: if it is not file.py:function or module:function, or the file does not exist.
    """
    module, _, function = target.rpartition(":")
    if not module or not function.isidentifier():
        raise ValueError(f'{name} = "{target}": write file.py:function or module:function')
    if module.endswith(".py") and not Path(module).is_file():
        raise ValueError(f'{name} = "{target}": there is no file {module}')
