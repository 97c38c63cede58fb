"""The reward server: ``POST /score`` and ``GET /health`` behind a token, one request per connection."""

import contextlib
import hashlib
import hmac
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from grpaint.core.policy import Reward
from grpaint.core.user_code import describe
from grpaint.rewards.elsewhere.limits import Limits, Malformed, TooLarge
from grpaint.rewards.elsewhere.scoring import Job, Score, ScoringQueue
from grpaint.rewards.elsewhere.wire import JSON_TYPE, media_type, read_request
from grpaint.rewards.function import WithMetadata
from grpaint.web.answers import JsonAnswer
from grpaint.web.server import Server, body_length, read_body


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


class RewardServer(Server):
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
        self.about, self.limits, self.log = about, limits, log
        self.queue = ScoringQueue(score, limits.batch)
        self._memory = _Memory(limits.memory)
        self._threads = anyio.CapacityLimiter(limits.connections)

        def refuse(_: HTTPConnection, error: AuthenticationError) -> Response:
            return JsonAnswer(401, {"error": str(error)})

        guard = Middleware(AuthenticationMiddleware, backend=_Token(token), on_error=refuse)
        routes = [Route("/health", self._health), Route("/score", self._score, methods=["POST"])]
        app = Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _refuse})
        app.router.redirect_slashes = False
        super().__init__(
            app,
            address,
            seconds=limits.seconds,
            connections=limits.connections,
            grace_s=limits.seconds,
        )

    async def _health(self, request: Request) -> Response:
        trouble = self.queue.trouble(self.limits.seconds)
        state = {"error": trouble} if trouble else {}
        return JsonAnswer(503 if trouble else 200, self.about | state | {"waiting": self.queue.waiting})

    async def _score(self, request: Request) -> Response:
        length = body_length(request, self.limits.bytes, "; send smaller batches")
        kind = request.headers.get("Content-Type", "")
        # JSON becomes a text, which takes up to four bytes for each of its own
        with self._memory.held(length * (4 if media_type(kind) == JSON_TYPE else 1)):
            body = await read_body(request)
            return await anyio.to_thread.run_sync(partial(self._scored, body, kind), limiter=self._threads)

    def _scored(self, body: bytes, kind: str) -> Response:
        try:
            unread = read_request(body, kind, self.limits)
            with self._memory.held(4 * 3 * unread.pixels):  # fp32
                return self._answer(self.queue.score(*unread.decode(), self.limits.seconds))
        except Malformed as error:
            return JsonAnswer(413 if isinstance(error, TooLarge) else 400, {"error": str(error)})
        except HTTPException:
            raise
        except BaseException as error:  # noqa: BLE001 - reason: no memory, or a fault of a decoder
            return self._failure(500, f"the request could not be read: {describe(error)}")

    def _answer(self, job: Job) -> Response:
        if job.scores is not None:
            return JsonAnswer(200, {"scores": job.scores, "identity": self.about["identity"]})
        if job.error:
            return self._failure(503 if self.queue.ended else 500, job.error)
        waiting = f"; {self.queue.waiting} requests wait" if self.queue.waiting else ""
        return JsonAnswer(504, {"error": f"no scores within {self.limits.seconds:g} s{waiting}"})

    def _failure(self, status: int, reason: str) -> Response:
        """Log the reason and return an answer with it."""
        with contextlib.suppress(OSError):  # nobody may read the log any more
            self.log(reason)
        return JsonAnswer(status, {"error": reason})


class _Token(AuthenticationBackend):
    """Accepts requests that carry the token."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}".encode()

    async def authenticate(self, conn: HTTPConnection) -> None:
        if not hmac.compare_digest(conn.headers.get("Authorization", "").encode(), self._header):
            raise AuthenticationError("wrong or no token; send it as Authorization: Bearer TOKEN")


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    nowhere = error.status_code in (404, 405)
    reason = "there are GET /health and POST /score" if nowhere else error.detail
    return JsonAnswer(error.status_code, {"error": reason}, error.headers)
