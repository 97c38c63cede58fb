"""A reward behind HTTP: ``POST /score`` and ``GET /health``, one request a connection, a token for both."""

import asyncio
import contextlib
import hashlib
import hmac
import inspect
import json
import math
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import anyio.to_thread
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from torch import Tensor
from uvicorn.protocols.http.h11_impl import H11Protocol

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt, Reward
from grpaint.rewards.web import printable
from grpaint.rewards.wire import Malformed, unpack

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


class RewardServer(uvicorn.Server):
    """Serves ``ask``; ``about`` has its name, version and identity. It listens from when it is made."""

    def __init__(
        self,
        address: tuple[str, int],
        ask: Ask,
        about: dict[str, str],
        token: str,
        limits: Limits,
        log: Callable[[str], None],
    ) -> None:
        self._socket = socket.create_server(address, backlog=64)
        self.server_port = int(self._socket.getsockname()[1])
        self.about, self.limits, self.log = about, limits, log
        self.bench = Bench(ask, limits.batch)
        self._threads = anyio.CapacityLimiter(limits.connections)

        def unknown(_: HTTPConnection, error: AuthenticationError) -> Response:
            return _Answer(401, {"error": str(error)})

        guard = Middleware(AuthenticationMiddleware, backend=_Token(token), on_error=unknown)
        routes = [Route("/health", self._health), Route("/score", self._score, methods=["POST"])]
        app = Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _refuse})
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Connection", (_Connection,), {"limits": limits}),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("Server", "grpaint"), ("Connection", "close")],
                timeout_graceful_shutdown=math.ceil(limits.seconds),
            )
        )

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` is called or, in the main thread, SIGTERM or Ctrl-C comes."""
        self.run([self._socket])

    def stop(self) -> None:
        """Take no more; what is under way ends before :meth:`serve_forever` returns."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End as :meth:`stop` does, however often the signal comes: the library would cut requests at a second one."""
        self.stop()

    async def _health(self, request: Request) -> Response:
        return _Answer(200, self.about)

    async def _score(self, request: Request) -> Response:
        body = await self._body(request)
        scored = partial(self._scored, body, request.headers.get("Content-Type", ""))
        return await anyio.to_thread.run_sync(scored, limiter=self._threads)

    async def _body(self, request: Request) -> bytes:
        """The body whole, within ``limits``.

        Raises:
            HTTPException: where it is refused.
        """
        length = request.headers.get("Content-Length", "")
        if not length or "Transfer-Encoding" in request.headers:
            raise HTTPException(411, "Content-Length is missing")
        if int(length) > self.limits.bytes:  # the protocol lets 20 digits through, and nothing else
            most = self.limits.bytes >> 20
            raise HTTPException(413, f"the body is larger than {most} MiB; send smaller batches")
        request.state.arrival.cancel()
        with anyio.CancelScope(deadline=request.state.arrival.when()), contextlib.suppress(ClientDisconnect):
            return await request.body()
        raise HTTPException(408, "the body did not arrive whole in time")

    def _scored(self, body: bytes, kind: str) -> Response:
        try:
            images, prompts = unpack(body, kind)
        except Malformed as error:
            return _Answer(400, {"error": str(error)})
        job = self.bench.score(images, prompts, self.limits.seconds)
        if job.scores is not None:
            return _Answer(200, {"scores": job.scores, "identity": self.about["identity"]})
        if job.error:
            self.log(printable(job.error))
            return _Answer(500, {"error": job.error})
        return _Answer(504, {"error": f"no scores within {self.limits.seconds:g} s"})


class _Connection(H11Protocol):
    """One of a limited number of connections, aborted where its client is too slow: uvicorn would wait without end.

    A header has ``seconds`` to arrive; ``RewardServer._body`` then stops the timer and answers 408 when it would have
    run out. The whole connection has four times as long: to arrive, be scored, be refused, and be read.
    """

    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # reason: as uvicorn does
        super().connection_made(transport)
        arrival = self.loop.call_later(self.limits.seconds, transport.abort)
        whole = self.loop.call_later(4 * self.limits.seconds, transport.abort)
        self._timers, self.app_state = (arrival, whole), {"arrival": arrival}
        if len(self.connections) > self.limits.connections or len(self.tasks) >= self.limits.connections:
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        super().connection_lost(exc)


class _Token(AuthenticationBackend):
    """Lets in who shows the token."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}".encode()

    async def authenticate(self, conn: HTTPConnection) -> None:
        if not hmac.compare_digest(conn.headers.get("Authorization", "").encode(), self._header):
            raise AuthenticationError("wrong or no token; send it as Authorization: Bearer TOKEN")


class _Answer(Response):
    """A JSON answer. After a refusal the request is read on for a while: closing on unread bytes loses the answer."""

    def __init__(self, status: int, content: dict[str, Any]) -> None:
        super().__init__(json.dumps(content, allow_nan=False), status, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(2):
            while self.status_code >= 400 and (await receive())["type"] == "http.request":
                pass
        await send({"type": "http.response.body"})


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    nowhere = error.status_code in (404, 405)
    reason = "there are GET /health and POST /score" if nowhere else error.detail
    return _Answer(error.status_code, {"error": reason})
