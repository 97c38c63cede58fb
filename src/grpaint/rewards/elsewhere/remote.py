"""A reward that other machines or processes hold: ``grpaint serve-reward`` there, ``kind = "remote"`` here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.parallel.background import BackgroundCall
from grpaint.rewards.elsewhere.client import (
    Failed,
    Question,
    ask_with_retries,
    bearer,
    check_url,
    printable,
    read_object,
)
from grpaint.rewards.elsewhere.wire import TENSORS, Pixels, answer_limit, pack, scores

HEALTH_LIMIT = 1 << 16


def check_patience(timeout_s: float, retries: int, backoff_s: float) -> None:
    """Refuse waiting for ever, and not at all."""
    if not 0 < timeout_s <= 86_400:
        raise ValueError(f"timeout_s must lie in (0, 86400], got {timeout_s}")
    if not 0 <= retries <= 100:
        raise ValueError(f"retries must lie in 0..100, got {retries}")
    if not 0 <= backoff_s <= 60:
        raise ValueError(f"backoff_s must lie in [0, 60], got {backoff_s}")


@dataclass
class Remote:
    """A reward served over HTTP (``grpaint serve-reward``), by one server or several alike.

    Images go in batches of ``batch``, whoever is asked, so the servers' number changes no score; ``pixels`` "uint8"
    sends a quarter and rounds to 256 levels. A batch that a server fails on goes to the next one, all of them
    ``retries`` times more, waiting ``backoff_s`` and twice as long each time. ``token_env`` names the environment
    variable with the token; ``identity``, where given, is the only one accepted (servers print theirs).
    """

    urls: tuple[str, ...]
    token_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5
    batch: int = 64
    concurrency: int = 1
    pixels: Pixels = "float32"
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
        """Ask who serves: all that answer must be one reward, and somebody must answer."""
        servers: dict[str, dict[str, str]] = {}
        lost: dict[str, RewardError] = {}
        for url in self.urls:
            try:
                servers[url] = ask_with_retries([url], self._health, self.retries, self.backoff_s)
            except RewardError as error:
                lost[url] = error
        if not servers:
            raise next(iter(lost.values()))
        first, about = next(iter(servers.items()))
        identity = self.identity or about["identity"]
        for url, other in servers.items():
            if other["identity"] != identity:
                whose = "the recipe asks for" if self.identity else f"{first} serves"
                raise RewardError(
                    f"{url} serves {other['name']} with identity {other['identity']}, and {whose} {identity}; serve "
                    "the same reward with the same settings and version everywhere, and go on with --resume."
                )
        self._identity = identity
        notes = [f"{url} serves {other['name']}, identity {other['identity']}" for url, other in servers.items()]
        return notes + [f"goes on without one server: {error}" for error in lost.values()]

    def stop(self) -> None:
        """Nothing is kept open between questions."""

    def _health(self, url: str) -> dict[str, str]:
        question = Question(_join(url, "health"), bearer(self.token_env), None, min(self.timeout_s, 10), HEALTH_LIMIT)
        about = read_object(question.ask())
        if not all(isinstance(about.get(key), str) for key in ("name", "version", "identity")):
            raise Failed("it does not say what it serves; is this `grpaint serve-reward`?")
        return {key: printable(str(about[key]), 80) for key in ("name", "version", "identity")}

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        if not self._identity:
            self.start()
        self._failed = False
        batches = list(torch.arange(len(images)).split(self.batch))
        lanes = min(len(batches), len(self.urls) * self.concurrency)
        parts: dict[int, list[float]] = {}

        def lane(first: int) -> None:
            for number in range(first, len(batches), lanes):
                if self._failed:  # another lane's batch is lost already
                    return
                rows = batches[number]
                theirs = [prompts[i] for i in rows.tolist()]
                parts[number] = self._score_batch(number, pack(images[rows], theirs, self.pixels), len(rows))

        under_way = [BackgroundCall(partial(lane, first)) for first in range(lanes)]
        for error in [later.error() for later in under_way]:
            if error:
                raise error
        return torch.tensor([score for number in range(len(batches)) for score in parts[number]])

    def _score_batch(self, number: int, body: bytes, count: int) -> list[float]:
        turn = number % len(self.urls)

        def once(url: str) -> list[float]:
            headers = {"Content-Type": TENSORS} | bearer(self.token_env)
            question = Question(_join(url, "score"), headers, body, self.timeout_s, answer_limit(count))
            answer = read_object(question.ask())
            if answer.get("identity") != self._identity:
                raise Failed(f"it now serves another reward, identity {answer.get('identity')!r:.40}", retryable=False)
            return scores(answer, count)

        try:
            return ask_with_retries([*self.urls[turn:], *self.urls[:turn]], once, self.retries, self.backoff_s)
        except RewardError:
            self._failed = True
            raise


def _join(url: str, path: str) -> str:
    return f"{url.rstrip('/')}/{path}"
