"""A reward behind HTTP: ``POST /score`` and ``GET /health``, one request a connection, a token for both."""

import contextlib
import hashlib
import hmac
import inspect
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt, Reward
from grpaint.rewards.elsewhere.client import printable
from grpaint.rewards.elsewhere.wire import Malformed, unpack

Ask = Callable[[Tensor, Sequence[Prompt]], Tensor]


def identity(reward: Reward, settings: dict[str, Any]) -> str:
    """Sixteen digits of what decides a reward's scores: its settings, its source file and our version.

    It does not see what that file imports or loads.
    """
    digest = hashlib.sha256(json.dumps([version("grpaint"), settings], sort_keys=True, default=str).encode())
    source = inspect.getsourcefile(reward if inspect.isfunction(reward) else type(reward))
    if source:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Limits:
    """What a server bears: ``bytes`` of a request, ``seconds`` for it to arrive and for its scores.

    ``batch``: images that requests waiting together may make up (0: each is scored alone); ``connections`` at a time.
    """

    bytes: int = 256 << 20
    seconds: float = 300.0
    batch: int = 0
    connections: int = 32


@dataclass
class _Job:
    images: Tensor
    prompts: list[Prompt]
    over: threading.Event = field(default_factory=threading.Event)
    given_up: bool = False
    scores: list[float] | None = None
    error: str = ""


class Bench:
    """Asks the reward in one thread, request after request: a reward need not know of threads."""

    def __init__(self, ask: Ask, batch: int) -> None:
        self._ask, self._batch = ask, batch
        self._jobs: deque[_Job] = deque()
        self._some = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def score(self, images: Tensor, prompts: list[Prompt], seconds: float) -> _Job:
        """Wait for a turn and for the scores; ``over`` is not set where ``seconds`` were not enough."""
        job = _Job(images, prompts)
        with self._some:
            self._jobs.append(job)
            self._some.notify()
        job.given_up = not job.over.wait(seconds)
        return job

    def _work(self) -> None:
        while True:
            jobs = self._next()
            if len(jobs) > 1 and self._try(jobs):
                continue
            for job in jobs:  # a request that fails must not fail others
                self._try([job])

    def _next(self) -> list[_Job]:
        """The first in the queue, and those behind it that go into one batch with it."""
        with self._some:
            self._some.wait_for(lambda: self._jobs)
            jobs = [self._jobs.popleft()]
            while self._jobs and self._fits([*jobs, self._jobs[0]]):
                jobs.append(self._jobs.popleft())
        return [job for job in jobs if not job.given_up]

    def _fits(self, jobs: list[_Job]) -> bool:
        sizes = {job.images.shape[1:] for job in jobs}
        return len(sizes) == 1 and sum(len(job.images) for job in jobs) <= self._batch

    def _try(self, jobs: list[_Job]) -> bool:
        try:
            prompts = [prompt for job in jobs for prompt in job.prompts]
            scores = self._ask(torch.cat([job.images for job in jobs]), prompts).tolist()
        except RewardError as error:
            jobs[0].error = str(error)
            if len(jobs) == 1:
                jobs[0].over.set()
            return False
        for job in jobs:
            job.scores, scores, job.error = scores[: len(job.prompts)], scores[len(job.prompts) :], ""
            job.over.set()
        return True


class RewardServer(ThreadingHTTPServer):
    """Serves ``ask``; ``about`` has its name, version and identity. :meth:`stop` lets end what is under way."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        ask: Ask,
        about: dict[str, str],
        token: str,
        limits: Limits,
        log: Callable[[str], None],
    ) -> None:
        super().__init__(address, _Handler)
        self.about, self.token, self.limits, self.log = about, token, limits, log
        self.bench = Bench(ask, limits.batch)
        self._free = threading.Semaphore(limits.connections)
        self._open = 0
        self._changed = threading.Condition()

    def server_bind(self) -> None:
        """Without asking the network for this machine's name, as the library would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, up to so many."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        self._count(1)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._open += more
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of ours."""

    def stop(self) -> None:
        """Take no more, let what is under way end, and close."""
        self.shutdown()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, self.limits.seconds)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: RewardServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.seconds)  # for each read; the timer is for all of them together
        self._timer = threading.Timer(self.server.limits.seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def finish(self) -> None:
        self._timer.cancel()
        super().finish()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self) -> None:
        if self._allowed():
            found = self.path == "/health"
            self._answer(200 if found else 404, self.server.about if found else {"error": "there is GET /health"})

    def do_POST(self) -> None:
        if not self._allowed():
            return
        if self.path != "/score":
            self._answer(404, {"error": "there is POST /score"})
            return
        body = self._body()
        if body is None:
            return
        self._timer.cancel()
        try:
            images, prompts = unpack(body, self.headers.get("Content-Type", ""))
        except Malformed as error:
            self._answer(400, {"error": str(error)})
            return
        job = self.server.bench.score(images, prompts, self.server.limits.seconds)
        if job.scores is not None:
            self._answer(200, {"scores": job.scores, "identity": self.server.about["identity"]})
        elif job.error:
            self.server.log(printable(job.error))
            self._answer(500, {"error": job.error})
        else:
            self._answer(504, {"error": f"no scores within {self.server.limits.seconds:g} s"})

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            return True
        self._answer(401, {"error": "wrong or no token; send it as Authorization: Bearer TOKEN"})
        return False

    def _body(self) -> bytes | None:
        """The body, or None where it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal():
            self._answer(411, {"error": "Content-Length is missing"})
            return None
        if len(length) > 15 or int(length) > self.server.limits.bytes:
            most = self.server.limits.bytes >> 20
            self._answer(413, {"error": f"the body is larger than {most} MiB; send smaller batches"})
            return None
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:  # the read's own limit: on a busy machine it may come before the timer
            body = b""
        if len(body) < int(length):
            self._answer(408, {"error": "the body did not arrive whole in time"})
            return None
        return body

    def _answer(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if status >= 400:
            self._drain()

    def _drain(self) -> None:
        """Read on for a while: a socket closed on unread bytes takes the answer with it."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1)
        until = time.monotonic() + 2
        with contextlib.suppress(OSError):
            while time.monotonic() < until and self.rfile.read1(1 << 16):
                pass

    def version_string(self) -> str:
        return "grpaint"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Requests are not news."""
