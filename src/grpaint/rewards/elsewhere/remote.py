"""A reward on another machine or in another process, served there by ``grpaint reward serve``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.core.text import one_line
from grpaint.parallel.background import BackgroundCall
from grpaint.rewards.elsewhere.client import (
    Failed,
    Question,
    ask_with_retries,
    bearer,
    check_url,
    read_object,
)
from grpaint.rewards.elsewhere.wire import SAFETENSORS_TYPE, PixelFormat, answer_limit, pack, read_scores

HEALTH_LIMIT = 1 << 16


def check_patience(timeout_s: float, retries: int, backoff_s: float) -> None:
    """Check the settings of waiting for an answer.

    Raises:
        ValueError: if one of them is out of its range.
    """
    if not 0 < timeout_s <= 86_400:
        raise ValueError(f"timeout_s must lie in (0, 86400], got {timeout_s}")
    if not 0 <= retries <= 100:
        raise ValueError(f"retries must lie in 0..100, got {retries}")
    if not 0 <= backoff_s <= 60:
        raise ValueError(f"backoff_s must lie in [0, 60], got {backoff_s}")


@dataclass
class Remote:
    """A reward served over HTTP by ``grpaint reward serve``, on one server or on several that serve the same reward.

    Images are sent in batches of ``batch``, so the number of servers changes no score. ``pixels`` "uint8" sends a
    quarter of the bytes and rounds to 256 levels. A batch on which a server fails goes to the next one; if all fail,
    they are tried again up to ``retries`` times, after ``backoff_s`` seconds and twice as long each time. ``token_env``
    names the environment variable with the token. If ``identity`` is set, no other one is accepted (servers print
    theirs). ``concurrency`` times the number of servers is the number of batches under way at once.
    """

    urls: tuple[str, ...]
    token_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5
    batch: int = 64
    concurrency: int = 1
    pixels: PixelFormat = "float32"
    identity: str | None = None
    needs_reference: bool = False
    _identity: str = field(default="", init=False, repr=False, compare=False)
    _failed: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("urls must name at least one server, http://HOST:PORT")
        for url in self.urls:
            try:
                check_url(url)
            except ValueError as error:
                raise ValueError(f"urls: {error}") from error
        if self.batch < 1 or self.concurrency < 1:
            raise ValueError(f"batch and concurrency must be at least 1, got {self.batch} and {self.concurrency}")
        check_patience(self.timeout_s, self.retries, self.backoff_s)

    def start(self) -> list[str]:
        """Ask every server which reward it serves, and return notes for the run's log.

        Raises:
            RewardError: if no server answers, or they serve different rewards.
        """
        servers: dict[str, dict[str, str]] = {}
        failures: dict[str, RewardError] = {}
        for url in self.urls:
            try:
                servers[url] = ask_with_retries([url], self._health, self.retries, self.backoff_s)
            except RewardError as error:
                failures[url] = error
        if not servers:
            raise next(iter(failures.values()))
        first, health = next(iter(servers.items()))
        identity = self.identity or health["identity"]
        for url, other in servers.items():
            if other["identity"] != identity:
                whose = "the recipe asks for" if self.identity else f"{first} serves"
                raise RewardError(
                    f"{url} serves {other['name']} with identity {other['identity']}, and {whose} {identity}; serve "
                    "the same reward with the same settings and version everywhere, and continue with --resume."
                )
        self._identity = identity
        notes = [f"{url} serves {other['name']}, identity {other['identity']}" for url, other in servers.items()]
        return notes + [f"continues without one server: {error}" for error in failures.values()]

    def stop(self) -> None:
        """Do nothing: no connection stays open between requests."""

    def _health(self, url: str) -> dict[str, str]:
        question = Question(_join(url, "health"), bearer(self.token_env), None, min(self.timeout_s, 10), HEALTH_LIMIT)
        health = read_object(question.ask())
        if not all(isinstance(health.get(key), str) for key in ("name", "version", "identity")):
            raise Failed("its answer does not name its reward; is this `grpaint reward serve`?")
        return {key: one_line(str(health[key]), 80) for key in ("name", "version", "identity")}

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        if not self._identity:
            self.start()
        self._failed = False
        batches = list(torch.arange(len(images)).split(self.batch))
        lanes = min(len(batches), len(self.urls) * self.concurrency)
        parts: dict[int, list[float]] = {}

        def lane(first: int) -> None:
            for number in range(first, len(batches), lanes):
                if self._failed:  # a batch of another lane has failed already
                    return
                rows = batches[number]
                batch_prompts = [prompts[i] for i in rows.tolist()]
                parts[number] = self._score(number, pack(images[rows], batch_prompts, self.pixels), len(rows))

        running = [BackgroundCall(partial(lane, first)) for first in range(lanes)]
        for error in [call.error() for call in running]:
            if error:
                raise error
        return torch.tensor([score for number in range(len(batches)) for score in parts[number]])

    def _score(self, number: int, body: bytes, count: int) -> list[float]:
        """The scores of batch ``number``, which goes first to another server than the batch before."""
        turn = number % len(self.urls)

        def ask(url: str) -> list[float]:
            headers = {"Content-Type": SAFETENSORS_TYPE} | bearer(self.token_env)
            question = Question(_join(url, "score"), headers, body, self.timeout_s, answer_limit(count))
            answer = read_object(question.ask())
            if answer.get("identity") != self._identity:
                raise Failed(f"it now serves another reward, identity {answer.get('identity')!r:.40}", retryable=False)
            return read_scores(answer, count)

        try:
            return ask_with_retries([*self.urls[turn:], *self.urls[:turn]], ask, self.retries, self.backoff_s)
        except RewardError:
            self._failed = True
            raise


def _join(url: str, path: str) -> str:
    return f"{url.rstrip('/')}/{path}"
