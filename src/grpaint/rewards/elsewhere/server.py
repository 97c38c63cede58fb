"""The reward server: ``POST /score`` and ``GET /health`` behind a token, one request per connection."""

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
from grpaint.rewards.elsewhere.client import printable
from grpaint.rewards.elsewhere.wire import Malformed, unpack
from grpaint.rewards.function import WithMetadata

Score = Callable[[Tensor, Sequence[Prompt]], Tensor]


def identity(reward: Reward, settings: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of what decides a reward's scores: settings, source file and grpaint's version.

    What the source file imports or loads is not covered.
    """
    digest = hashlib.sha256(json.dumps([version("grpaint"), settings], sort_keys=True, default=str).encode())
    own = reward.function if isinstance(reward, WithMetadata) else reward
    source = inspect.getsourcefile(own if inspect.isfunction(own) else type(own))
    if source:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Limits:
    """Limits of a server: ``bytes`` of a request, ``seconds`` for it to arrive and again to be scored.

    ``batch``: images of waiting requests that are scored together (0: each alone). ``connections``: at one time.
    """

    bytes: int = 256 << 20
    seconds: float = 300.0
    batch: int = 0
    connections: int = 32


@dataclass
class _Job:
    images: Tensor
    prompts: list[Prompt]
    finished: threading.Event = field(default_factory=threading.Event)
    abandoned: bool = False
    scores: list[float] | None = None
    error: str = ""


class ScoringQueue:
    """Scores requests in one thread, so that a reward need not be thread-safe; waiting ones may share a batch."""

    def __init__(self, score: Score, batch: int) -> None:
        self._score, self._batch = score, batch
        self._jobs: deque[_Job] = deque()
        self._arrived = threading.Condition()
        threading.Thread(target=self._work, daemon=True).start()

    def score(self, images: Tensor, prompts: list[Prompt], seconds: float) -> _Job:
        """Queue a request and wait for its scores; ``finished`` is not set if ``seconds`` were not enough."""
        job = _Job(images, prompts)
        with self._arrived:
            self._jobs.append(job)
            self._arrived.notify()
        job.abandoned = not job.finished.wait(seconds)
        return job

    def _work(self) -> None:
        while True:
            jobs = self._next()
            if len(jobs) > 1 and self._try(jobs):
                continue
            for job in jobs:  # a request that fails must not fail others
                self._try([job])

    def _next(self) -> list[_Job]:
        """Wait for a request; return it with those behind it that fit into the same batch."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._jobs)
            jobs = [self._jobs.popleft()]
            while self._jobs and self._fits([*jobs, self._jobs[0]]):
                jobs.append(self._jobs.popleft())
        return [job for job in jobs if not job.abandoned]

    def _fits(self, jobs: list[_Job]) -> bool:
        sizes = {job.images.shape[1:] for job in jobs}
        return len(sizes) == 1 and sum(len(job.images) for job in jobs) <= self._batch

    def _try(self, jobs: list[_Job]) -> bool:
        try:
            prompts = [prompt for job in jobs for prompt in job.prompts]
            scores = self._score(torch.cat([job.images for job in jobs]), prompts).tolist()
        except RewardError as error:
            jobs[0].error = str(error)
            if len(jobs) == 1:
                jobs[0].finished.set()
            return False
        for job in jobs:
            job.scores, scores, job.error = scores[: len(job.prompts)], scores[len(job.prompts) :], ""
            job.finished.set()
        return True


class RewardServer(uvicorn.Server):
    """Serves a reward's ``score``; ``about`` has its name, version and identity. Listens as soon as it is made."""

    def __init__(
        self,
        address: tuple[str, int],
        score: Score,
        about: dict[str, str],
        token: str,
        limits: Limits,
        log: Callable[[str], None],
    ) -> None:
        self._socket = socket.create_server(address, backlog=64)
        self.server_port = int(self._socket.getsockname()[1])
        self.about, self.limits, self.log = about, limits, log
        self.queue = ScoringQueue(score, limits.batch)
        self._threads = anyio.CapacityLimiter(limits.connections)

        def refuse(_: HTTPConnection, error: AuthenticationError) -> Response:
            return _Answer(401, {"error": str(error)})

        guard = Middleware(AuthenticationMiddleware, backend=_Token(token), on_error=refuse)
        routes = [Route("/health", self._health), Route("/score", self._score, methods=["POST"])]
        app = Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _refuse})
        app.router.redirect_slashes = False
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
        """Serve until :meth:`stop` is called or, in the main thread, until SIGTERM or Ctrl-C."""
        self.run([self._socket])

    def stop(self) -> None:
        """Accept no more requests; :meth:`serve_forever` returns when those under way have ended."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, however often the signal comes: uvicorn alone would abort requests at the second one."""
        self.stop()

    async def _health(self, request: Request) -> Response:
        return _Answer(200, self.about)

    async def _score(self, request: Request) -> Response:
        body = await self._body(request)
        scored = partial(self._scored, body, request.headers.get("Content-Type", ""))
        return await anyio.to_thread.run_sync(scored, limiter=self._threads)

    async def _body(self, request: Request) -> bytes:
        """Read the body within ``limits``.

        Raises:
            HTTPException: it has no length, is too long, or does not arrive in time.
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
        job = self.queue.score(images, prompts, self.limits.seconds)
        if job.scores is not None:
            return _Answer(200, {"scores": job.scores, "identity": self.about["identity"]})
        if job.error:
            self.log(printable(job.error))
            return _Answer(500, {"error": job.error})
        return _Answer(504, {"error": f"no scores within {self.limits.seconds:g} s"})


class _Connection(H11Protocol):
    """A connection with time limits, which uvicorn does not have, refused if there are too many.

    The header must arrive within ``limits.seconds``, or the connection is aborted; ``RewardServer._body`` takes over
    the same deadline for the body and answers 408. The whole connection may last four times as long.
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
    """Accepts requests that carry the token."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}".encode()

    async def authenticate(self, conn: HTTPConnection) -> None:
        if not hmac.compare_digest(conn.headers.get("Authorization", "").encode(), self._header):
            raise AuthenticationError("wrong or no token; send it as Authorization: Bearer TOKEN")


class _Answer(Response):
    """A JSON answer. After a refusal the rest of the request is read for a while: closing earlier loses the answer."""

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
