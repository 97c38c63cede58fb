"""Asking a web server once, within a time and a size, and asking again: the client of every reward over HTTP."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from grpaint.core.errors import ConfigError, RewardError

T = TypeVar("T")
LONGEST_WAIT_S = 60.0


class Failed(Exception):
    """A question that got no answer. ``again``: asking the same once more may help."""

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


def check_url(url: str) -> None:
    """Refuse what is no plain address.

    Raises:
        ValueError: with what is wrong with it.
    """
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError(f'"{url}" is no address ({error}); write http://HOST:PORT') from error
    if not plain or parts.query or parts.fragment or parts.username:
        raise ValueError(f'"{url}" is no address; write http://HOST:PORT, a token apart from it in token_env')


def bearer(token_env: str | None) -> dict[str, str]:
    """The header that shows the token which an environment variable holds.

    Raises:
        ConfigError: where it holds none.
    """
    if not token_env:
        return {}
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise ConfigError(f'token_env = "{token_env}": that environment variable is not set; export {token_env}=...')
    if not (token.isascii() and token.isprintable()):
        raise ConfigError(f'token_env = "{token_env}": what that environment variable holds is no token.')
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Question:
    """A request: GET without a ``body``. ``seconds`` for all of it; an answer over ``limit`` bytes is not read."""

    url: str
    headers: dict[str, str]
    body: bytes | None
    seconds: float
    limit: int

    def ask(self) -> bytes:
        """The body of a 200 answer.

        Raises:
            Failed: for whatever else happens.
        """
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.seconds)
        deadline = _Deadline(self.seconds)
        try:
            connection.connect()  # bounded by the connection's own timeout
            deadline.guard(connection.sock)
            self._send(connection, parts.path or "/")
            body = self._receive(connection.getresponse())
            if deadline.passed:  # without a length, a cut answer looks like a whole one
                raise TimeoutError
            return body
        except (OSError, http.client.HTTPException) as error:
            raise Failed(self._reason(error, late=deadline.passed)) from error
        finally:
            deadline.off()
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, path: str) -> None:
        try:
            connection.request("GET" if self.body is None else "POST", path, self.body, self.headers)
        except (BrokenPipeError, ConnectionResetError):
            if connection.sock is None:
                raise
            # a server may refuse before it has read all, and has then said why

    def _receive(self, answer: http.client.HTTPResponse) -> bytes:
        body = b""
        while len(body) <= self.limit and (chunk := answer.read(1 << 16)):
            body += chunk
        if len(body) > self.limit or (answer.length or 0) > self.limit:
            raise Failed(f"its answer is longer than {self.limit} bytes")
        if answer.length:
            raise http.client.IncompleteRead(body, answer.length)
        if answer.status != 200:
            final = 300 <= answer.status < 500 and answer.status not in (408, 425, 429)
            raise Failed(f"it answered {answer.status}{_said(body)}", again=not final)
        return body

    def _reason(self, error: Exception, *, late: bool) -> str:
        if late or isinstance(error, TimeoutError):
            return f"no whole answer within {self.seconds:g} s"
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            return f"cannot be reached ({error.strerror})"
        if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected | ConnectionError):
            return "it closed the connection before its answer was whole"
        if isinstance(error, http.client.HTTPException):
            return f"its answer is no HTTP ({type(error).__name__})"
        return f"{type(error).__name__}: {error}"


class _Deadline:
    """Cuts a socket once its time is over, however busily the other side goes on."""

    def __init__(self, seconds: float) -> None:
        self.passed, self._until = False, time.monotonic() + seconds
        self._timer: threading.Timer | None = None

    def guard(self, connected: socket.socket) -> None:
        """From now on."""
        self._timer = threading.Timer(max(0, self._until - time.monotonic()), self._cut, [connected])
        self._timer.daemon = True
        self._timer.start()

    def off(self) -> None:
        """Not any more."""
        if self._timer:
            self._timer.cancel()

    def _cut(self, connected: socket.socket) -> None:
        self.passed = True
        with contextlib.suppress(OSError):  # it may have been closed in the meantime
            connected.shutdown(socket.SHUT_RDWR)


def _said(body: bytes) -> str:
    """What a refusal gives as its reason, cut short; nothing where it gives none."""
    try:
        told = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    told = told.get("message", "") if isinstance(told, dict) else told
    return f": {printable(str(told))}" if told else ""


def printable(text: str, most: int = 300) -> str:
    """A foreign text as one line, cut short."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * most]).split())
    return line[:most] + " .." * (len(line) > most)


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object without NaN and infinities.

    Raises:
        Failed: where it is none.
    """
    try:
        found = json.loads(body, parse_constant=_refuse)
    except _NoNumberError as error:
        raise Failed(f"its answer holds {error}, which is no score") from error
    except (ValueError, RecursionError) as error:
        raise Failed(f'its answer is no JSON: "{printable(body[:200].decode("utf-8", "replace"), 60)}"') from error
    if not isinstance(found, dict):
        raise Failed(f"its answer is no JSON object but {type(found).__name__}")
    return found


class _NoNumberError(Exception):
    """NaN or an infinity in JSON."""


def _refuse(constant: str) -> None:
    raise _NoNumberError(constant)


def insist(servers: Sequence[str], ask: Callable[[str], T], retries: int, backoff_s: float) -> T:
    """Ask the servers in turn, all of them up to ``retries`` times more, and wait between such rounds.

    The wait doubles from ``backoff_s`` on, up to a minute. A server that asking again cannot help is left out.

    Raises:
        RewardError: with the last server's reason.
    """
    left, tries, reason = list(servers), 0, ""
    for number in range(retries + 1):
        if number:
            time.sleep(min(LONGEST_WAIT_S, backoff_s * 2 ** (number - 1)))
        for server in list(left):
            tries += 1
            try:
                return ask(server)
            except Failed as error:
                reason = f"{server}: {error}"
                if not error.again:
                    left.remove(server)
        if not left:
            break
    times = "once" if tries == 1 else f"{tries} times"
    raise RewardError(f"{reason}; asked {times}, and nobody answered. Mend the server and go on with --resume.")
