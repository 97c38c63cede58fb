"""The one thread of a reward server that calls the reward."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.core.user_code import describe

Score = Callable[[Tensor, Sequence[Prompt]], Tensor]


@dataclass(eq=False)
class Job:
    """A request to score images: its ``scores``, or the ``error`` in their place, once ``finished`` is set."""

    images: Tensor
    prompts: list[Prompt]
    finished: threading.Event = field(default_factory=threading.Event)
    scores: list[float] | None = None
    error: str = ""


class ScoringQueue:
    """Scores requests in one thread, so that a reward need not be thread-safe; waiting ones may share a batch.

    Whatever a reward raises ends its request alone. ``ended`` is the reason if the thread has ended all the same; then
    every request, those that wait included, ends at once with it as its error.
    """

    def __init__(self, score: Score, batch: int) -> None:
        self._score, self._batch = score, batch
        self._waiting: deque[Job] = deque()
        self._current: list[Job] = []
        self._since = 0.0
        self._arrived = threading.Condition()
        self.ended = ""
        threading.Thread(target=self._work, daemon=True).start()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for the one that is being scored."""
        return len(self._waiting)

    def trouble(self, seconds: float) -> str:
        """Return why requests are not scored: the thread has ended, or is stuck for ``seconds``; "" if they are."""
        scored_for = time.monotonic() - self._since
        if not self.ended and self._current and scored_for > seconds:
            return f"a request has been scored for {scored_for:.0f} s, longer than the {seconds:g} s that it may take"
        return self.ended

    def score(self, images: Tensor, prompts: list[Prompt], seconds: float) -> Job:
        """Queue a request and wait for its scores; ``finished`` is not set if ``seconds`` were not enough."""
        job = Job(images, prompts)
        with self._arrived:
            if self.ended:
                self._finish([job], self.ended)
                return job
            self._waiting.append(job)
            self._arrived.notify()
        if not job.finished.wait(seconds):
            with self._arrived:
                if job in self._waiting:
                    self._waiting.remove(job)
        return job

    def _work(self) -> None:
        try:
            while True:
                jobs = self._next()
                if len(jobs) > 1 and self._try(jobs):
                    continue
                for job in jobs:  # a request that fails must not fail others
                    self._try([job])
        except BaseException as error:  # noqa: BLE001 - reason: no memory for the queue itself, for example
            with self._arrived:
                self.ended = f"the scoring thread has ended ({describe(error)}); start the server again"
                self._finish([*self._current, *self._waiting], self.ended)
                self._waiting.clear()

    def _next(self) -> list[Job]:
        """Wait for a request; return it with those behind it that fit into the same batch."""
        with self._arrived:
            self._current = []
            self._arrived.wait_for(lambda: self._waiting)
            self._current.append(self._waiting.popleft())
            while self._waiting and self._fits([*self._current, self._waiting[0]]):
                self._current.append(self._waiting.popleft())
            return list(self._current)

    def _fits(self, jobs: list[Job]) -> bool:
        sizes = {job.images.shape[1:] for job in jobs}
        return len(sizes) == 1 and sum(len(job.images) for job in jobs) <= self._batch

    def _try(self, jobs: list[Job]) -> bool:
        """Score jobs together; return whether it worked. A single job ends with its error."""
        self._since = time.monotonic()
        try:
            prompts = [prompt for job in jobs for prompt in job.prompts]
            images = jobs[0].images if len(jobs) == 1 else torch.cat([job.images for job in jobs])
            scores = self._score(images, prompts).tolist()
        except BaseException as error:  # noqa: BLE001 - reason: a reward may raise anything, and no memory may be left
            if len(jobs) == 1:
                self._finish(jobs, str(error) if isinstance(error, RewardError) else describe(error))
            return False
        for job in jobs:
            job.scores, scores = scores[: len(job.prompts)], scores[len(job.prompts) :]
            job.finished.set()
        return True

    def _finish(self, jobs: list[Job], error: str) -> None:
        """End those of ``jobs`` that have not ended with an error."""
        for job in jobs:
            if not job.finished.is_set():
                job.error = error
                job.finished.set()
