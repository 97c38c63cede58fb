"""Asking a web server once, within a time and a size, and asking again: the client of every reward over HTTP."""

import json
import os
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from grpaint.core.errors import ConfigError, RewardError

T = TypeVar("T")
LONGEST_WAIT_S = 60.0


class Failed(Exception):
    """A question that got no answer. ``retryable``: asking the same once more may help."""

    def __init__(self, reason: str, *, retryable: bool = True) -> None:
        super().__init__(reason)
        self.retryable = retryable


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
        try:
            with start_blocking_portal() as portal:  # an event loop of its own: the caller may stand in one
                return portal.call(self._ask)
        except (TimeoutError, OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Failed(self._reason(error)) from error

    async def _ask(self) -> bytes:
        method = "GET" if self.body is None else "POST"
        headers = {"Accept-Encoding": "identity"} | self.headers
        verify = False if urlsplit(self.url).scheme == "http" else ssl.create_default_context()  # costs 20 ms
        async with httpx2.AsyncClient(timeout=None, trust_env=False, verify=verify) as client:
            with anyio.fail_after(self.seconds):
                async with client.stream(method, self.url, content=self.body, headers=headers) as answer:
                    return await self._receive(answer)

    async def _receive(self, answer: httpx2.Response) -> bytes:
        body = b""
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > self.limit:
                raise Failed(f"its answer is longer than {self.limit} bytes")
        if answer.status_code != 200:
            final = 300 <= answer.status_code < 500 and answer.status_code not in (408, 425, 429)
            raise Failed(f"it answered {answer.status_code}{_refusal(body)}", retryable=not final)
        return body

    def _reason(self, error: Exception) -> str:
        match error:
            case TimeoutError():
                return f"no whole answer within {self.seconds:g} s"
            case httpx2.ConnectError():
                return f"cannot be reached ({_system_reason(error)})"
            case httpx2.NetworkError():
                return "it closed the connection before its answer was whole"
            case httpx2.RemoteProtocolError() if re.search("closed|disconnected", str(error)):
                return "it closed the connection before its answer was whole"
            case httpx2.RemoteProtocolError():
                return f"its answer is no HTTP ({printable(str(error), 60)})"
        return f"{type(error).__name__}: {error}"


def _system_reason(error: BaseException) -> str:
    """What the system says about a connection that cannot be made; of several addresses, about the first."""
    while cause := error.__cause__ or error.__context__:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    if not isinstance(error, OSError):
        return str(error)
    in_asyncio_words = "Connect call failed" in str(error)  # whatever the reason
    return os.strerror(error.errno or 0) if in_asyncio_words else error.strerror or str(error)


def _refusal(body: bytes) -> str:
    """What a refusal gives as its reason, cut short; nothing where it gives none."""
    try:
        reason = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    reason = reason.get("message", "") if isinstance(reason, dict) else reason
    return f": {printable(str(reason))}" if reason else ""


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
        value = json.loads(body, parse_constant=_refuse)
    except _NoNumberError as error:
        raise Failed(f"its answer holds {error}, which is no score") from error
    except (ValueError, RecursionError) as error:
        raise Failed(f'its answer is no JSON: "{printable(body[:200].decode("utf-8", "replace"), 60)}"') from error
    if not isinstance(value, dict):
        raise Failed(f"its answer is no JSON object but {type(value).__name__}")
    return value


class _NoNumberError(Exception):
    """NaN or an infinity in JSON."""


def _refuse(constant: str) -> None:
    raise _NoNumberError(constant)


def ask_with_retries(servers: Sequence[str], ask: Callable[[str], T], retries: int, backoff_s: float) -> T:
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
                if not error.retryable:
                    left.remove(server)
        if not left:
            break
    times = "once" if tries == 1 else f"{tries} times"
    raise RewardError(f"{reason}; asked {times}, and nobody answered. Mend the server and go on with --resume.")
