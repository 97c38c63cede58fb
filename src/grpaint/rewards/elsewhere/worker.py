"""Rewards in a worker process with an interpreter, and so with packages, of its own."""

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
from grpaint.rewards.elsewhere.process import Died, Process
from grpaint.rewards.elsewhere.wire import answer_limit, pack, scores

Form = Literal["pil", "numpy", "raw"]


@dataclass(kw_only=True)
class Hosted:
    """What rewards over a worker process share.

    ``python`` is the interpreter (ours where unset); ``images`` the form in which its function wants them: PIL images,
    numpy ``[h, w, 3]`` uint8, or (width, height, bytes). A worker that dies, or is later than ``timeout_s`` and is
    therefore ended, is started again and asked again, ``restarts`` times a batch; ``start_s`` is for loading.
    """

    python: str | None = None
    images: Form = "pil"
    batch: int = 32
    timeout_s: float = 300.0
    start_s: float = 600.0
    restarts: int = 2
    _process: Process | None = field(default=None, init=False, repr=False, compare=False)

    how: ClassVar[Literal["batch", "each"]] = "each"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if not 0 <= self.restarts <= 100:
            raise ValueError(f"restarts must lie in 0..100, got {self.restarts}")
        for name in ("timeout_s", "start_s"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValueError(f"{name} must lie in (0, 86400], got {getattr(self, name)}")

    def target(self) -> str:
        """The function to run, as file.py:name or module:name."""
        raise NotImplementedError

    def start(self) -> list[str]:
        """Start the process and wait until its function is loaded."""
        self.stop()
        place, _, name = self.target().rpartition(":")
        if place.endswith(".py"):
            place = str(Path(place).resolve())
        python = self.python or sys.executable
        try:
            self._process = Process(python, [f"{place}:{name}", self.how, self.images], self.start_s)
        except Failed as error:
            raise RewardError(
                f"its worker ({python}) did not start: {error}. Mend that and go on with --resume."
            ) from error
        return [f"worker runs {self.target()} under Python {self._process.about.get('ready')} ({python})"]

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            process.stop()

    def values(self, images: Tensor, prompts: Sequence[Prompt], limit: int = 1 << 20) -> list[Any]:
        """What the worker's function says about each image; ``limit`` bytes an image at most.

        Raises:
            RewardError: where it raises, or does not last.
        """
        out: list[Any] = []
        for rows in torch.arange(len(images)).split(self.batch):
            theirs = [Prompt(prompts[i].text, prompts[i].metadata) for i in rows.tolist()]
            body = pack(images[rows], theirs, "uint8")
            found = self._insist(body, answer_limit(len(rows)) + limit * len(rows))
            if len(found) != len(rows):
                raise RewardError(f"its worker gave {len(found)} values for {len(rows)} images")
            out += found
        return out

    def _insist(self, body: bytes, limit: int) -> list[Any]:
        for left in reversed(range(self.restarts + 1)):
            if not self._process:
                self.start()
            assert self._process
            try:
                return self._process.ask(body, self.timeout_s, limit)
            except Died as error:
                self.stop()
                if not left:
                    raise RewardError(
                        f"its worker failed {self.restarts + 1} times on the same batch: {error}. Mend it and go on "
                        "with --resume."
                    ) from error
            except Failed as error:
                raise RewardError(f"its worker: {error}. Mend it and go on with --resume.") from error
        raise AssertionError("restarts is not negative")


@dataclass(kw_only=True)
class Worker(Hosted):
    """A function ``f(images, prompts, metadata)`` of yours under an interpreter of its own: one score an image.

    ``reward`` is ``file.py:f`` or ``module:f``. Images are rounded to 256 levels; ``prompts`` are texts and
    ``metadata`` what the prompts carry, as far as JSON holds it.
    """

    reward: str

    how: ClassVar[Literal["batch", "each"]] = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_target("reward", self.reward)

    def target(self) -> str:
        return self.reward

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        try:
            return torch.tensor(scores({"scores": self.values(images, prompts, 64)}, len(images)))
        except Failed as error:
            raise RewardError(f"its worker: {error}") from error


def check_target(name: str, target: str) -> None:
    """Refuse what names no function, or a file that is not there.

    Raises:
        ValueError: with the reason.
    """
    place, _, function = target.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f'{name} = "{target}": write file.py:function or module:function')
    if place.endswith(".py") and not Path(place).is_file():
        raise ValueError(f'{name} = "{target}": there is no file {place}')
