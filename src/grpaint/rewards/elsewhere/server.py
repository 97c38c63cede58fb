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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import anyio.to_thread
import uvicorn
from h11 import LocalProtocolError
from starlette.applications import Starlette
from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from grpaint.core.policy import Reward
from grpaint.core.user_code import describe
from grpaint.rewards.elsewhere.limits import Limits, Malformed, TooLarge
from grpaint.rewards.elsewhere.scoring import Job, Score, ScoringQueue
from grpaint.rewards.elsewhere.wire import JSON_TYPE, media_type, read_request
from grpaint.rewards.function import WithMetadata


def identity(reward: Reward, settings: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of what decides a reward's scores: settings, source file and grpaint's version.

    What the source file imports or loads is not covered.
    """
    digest = hashlib.sha256(json.dumps([version("grpaint"), settings], sort_keys=True, default=str).encode())
    own = reward.function if isinstance(reward, WithMetadata) else reward
    with contextlib.suppress(TypeError):  # what is built into Python has no file
        if source := inspect.getsourcefile(own if inspect.isfunction(own) else type(own)):
            digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


class _Memory:
    """Counts the bytes that all requests hold together."""

    def __init__(self, most: int) -> None:
        self._free, self._lock = most, threading.Lock()

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count ``size`` bytes within the block.

        Raises:
            HTTPException: there is no room for them now.
        """
        with self._lock:
            full = size > self._free
            self._free -= 0 if full else size
        if full:
            raise HTTPException(503, "other requests take up the server's memory; ask again", {"Retry-After": "1"})
        try:
            yield
        finally:
            with self._lock:
                self._free += size


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
        self._memory = _Memory(limits.memory)
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
        trouble = self.queue.trouble(self.limits.seconds)
        state = {"error": trouble} if trouble else {}
        return _Answer(503 if trouble else 200, self.about | state | {"waiting": self.queue.waiting})

    async def _score(self, request: Request) -> Response:
        length, kind = self._length(request), request.headers.get("Content-Type", "")
        # JSON becomes a text, which takes up to four bytes for each of its own
        with self._memory.held(length * (4 if media_type(kind) == JSON_TYPE else 1)):
            body = await self._body(request)
            return await anyio.to_thread.run_sync(partial(self._scored, body, kind), limiter=self._threads)

    def _length(self, request: Request) -> int:
        """Return the length of the body.

        Raises:
            HTTPException: it has none, or is too long.
        """
        length = request.headers.get("Content-Length", "")
        if not length or "Transfer-Encoding" in request.headers:
            raise HTTPException(411, "Content-Length is missing")
        if int(length) > self.limits.bytes:  # the protocol lets 20 digits through, and nothing else
            most = self.limits.bytes >> 20
            raise HTTPException(413, f"the body is larger than {most} MiB; send smaller batches")
        return int(length)

    async def _body(self, request: Request) -> bytes:
        """Read the body.

        Raises:
            HTTPException: it does not arrive in time.
        """
        request.state.arrival.cancel()
        with anyio.CancelScope(deadline=request.state.arrival.when()), contextlib.suppress(ClientDisconnect):
            return await request.body()
        raise HTTPException(408, "the body did not arrive whole in time")

    def _scored(self, body: bytes, kind: str) -> Response:
        try:
            unread = read_request(body, kind, self.limits)
            with self._memory.held(4 * 3 * unread.pixels):  # fp32
                return self._answer(self.queue.score(*unread.decode(), self.limits.seconds))
        except Malformed as error:
            return _Answer(413 if isinstance(error, TooLarge) else 400, {"error": str(error)})
        except HTTPException:
            raise
        except BaseException as error:  # noqa: BLE001 - reason: no memory, or a fault of a decoder
            return self._failure(500, f"the request could not be read: {describe(error)}")

    def _answer(self, job: Job) -> Response:
        if job.scores is not None:
            return _Answer(200, {"scores": job.scores, "identity": self.about["identity"]})
        if job.error:
            return self._failure(503 if self.queue.ended else 500, job.error)
        waiting = f"; {self.queue.waiting} requests wait" if self.queue.waiting else ""
        return _Answer(504, {"error": f"no scores within {self.limits.seconds:g} s{waiting}"})

    def _failure(self, status: int, reason: str) -> Response:
        """Log the reason and return an answer with it."""
        with contextlib.suppress(OSError):  # nobody may read the log any more
            self.log(reason)
        return _Answer(status, {"error": reason})


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

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except LocalProtocolError:  # an answer is under way, to a request that is followed by no HTTP
            self.transport.close()

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

    def __init__(self, status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json.dumps(content, allow_nan=False), status, headers, "application/json")

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
    return _Answer(error.status_code, {"error": reason}, error.headers)
