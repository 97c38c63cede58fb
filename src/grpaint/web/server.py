"""The one HTTP server: a request per connection, limits of time and number, and a clean end on a signal."""

import asyncio
import contextlib
import math
import socket
from types import FrameType

import anyio
import uvicorn
from h11 import LocalProtocolError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from grpaint.core.errors import ConfigError


class Server(uvicorn.Server):
    """Serves an application; listens as soon as it is made.

    ``seconds``: for a request to arrive; the whole connection may last four times as long. ``connections``: at one
    time; more are answered 503. ``grace_s``: for requests under way when it stops.
    """

    def __init__(
        self, app: ASGIApp, address: tuple[str, int], *, seconds: float, connections: int, grace_s: float
    ) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        try:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self._socket = socket.create_server(address, family=family, backlog=64)
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]  # the library repeats the address
            raise ConfigError(f"--host {address[0]} --port {address[1]}: {reason}.") from error
        self.server_port = int(self._socket.getsockname()[1])
        super().__init__(
            uvicorn.Config(
                _Arrived(app),
                http=type("Connection", (_Connection,), {"seconds": seconds, "most": connections}),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("Server", "grpaint"), ("Connection", "close")],
                timeout_graceful_shutdown=math.ceil(grace_s),
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


def body_length(request: Request, most: int, advice: str = "") -> int:
    """Return the bytes of a request's body as its header has them; ``advice`` ends the refusal of one too large.

    Raises:
        HTTPException: it has none, or more than ``most``.
    """
    length = request.headers.get("Content-Length", "")
    if not length or "Transfer-Encoding" in request.headers:
        raise HTTPException(411, "Content-Length is missing")
    if int(length) > most:  # the protocol lets 20 digits through, and nothing else
        size = f"{most >> 20} MiB" if most >> 20 else f"{most} bytes"
        raise HTTPException(413, f"the body is larger than {size}{advice}")
    return int(length)


async def read_body(request: Request) -> bytes:
    """Read the body, whose length has been checked by :func:`body_length`.

    Raises:
        HTTPException: it does not arrive in time.
    """
    request.state.arrival.cancel()
    with anyio.CancelScope(deadline=request.state.arrival.when()), contextlib.suppress(ClientDisconnect):
        return await request.body()
    raise HTTPException(408, "the body did not arrive whole in time")


class _Arrived:
    """Ends the time limit of arrival where a request has no body to wait for; :func:`read_body` ends it of others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD"):
            scope["state"]["arrival"].cancel()
        await self._app(scope, receive, send)


class _Connection(H11Protocol):
    """A connection with time limits, which uvicorn does not have, refused if there are too many.

    The header must arrive within ``seconds``, or the connection is aborted; :func:`read_body` takes over the same
    deadline for the body. The whole connection may last four times as long, whether or not its client reads.
    """

    seconds: float
    most: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # reason: as uvicorn does
        super().connection_made(transport)
        arrival = self.loop.call_later(self.seconds, transport.abort)
        whole = self.loop.call_later(4 * self.seconds, transport.abort)
        self._timers, self.app_state = (arrival, whole), {"arrival": arrival}
        if len(self.connections) > self.most or len(self.tasks) >= self.most:
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
