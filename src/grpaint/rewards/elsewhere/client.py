"""The HTTP client of rewards: one request within limits of time and size, and retries over several servers."""

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
from grpaint.core.text import one_line
from grpaint.core.user_code import describe

T = TypeVar("T")
LONGEST_WAIT_S = 60.0
MOST = 300  # characters of a server's text in an error


class Failed(Exception):
    """A request failed. ``retryable``: the same request may succeed later."""

    def __init__(self, reason: str, *, retryable: bool = True) -> None:
        super().__init__(reason)
        self.retryable = retryable


def check_url(url: str) -> None:
    """Check that ``url`` is a plain http or https address.

    Raises:
        ValueError: it is not; the message says why.
    """
    try:
        if not url.isprintable() or " " in url:
            raise ValueError("a blank or a control character")
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")  # as the system's resolver reads it
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL) as error:  # UnicodeError is a ValueError
        raise ValueError(
            f'"{one_line(url, MOST)}" is no address ({one_line(str(error), MOST)}); write http://HOST:PORT'
        ) from error
    if not plain or parts.query or parts.fragment or parts.username:
        raise ValueError(
            f'"{one_line(url, MOST)}" is no address; write http://HOST:PORT, a token apart from it in token_env'
        )


def bearer(token_env: str | None) -> dict[str, str]:
    """Return the Authorization header for the token in an environment variable; no header without a variable.

    Raises:
        ConfigError: the variable is not set or holds no token.
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
    """A request: GET without a ``body``, else POST. ``seconds`` limits all of it, ``limit`` the bytes of the answer."""

    url: str
    headers: dict[str, str]
    body: bytes | None
    seconds: float
    limit: int

    def ask(self) -> bytes:
        """Send the request and return the body of the answer, which must have status 200.

        Raises:
            Failed: anything else happened.
        """
        try:
            with start_blocking_portal() as portal:  # an event loop of its own: the caller may run in one already
                return portal.call(self._ask)
        except Failed:
            raise
        except (httpx2.LocalProtocolError, UnicodeError) as error:  # their messages may hold a header, and its token
            raise Failed("the request cannot be sent: its address or a header is not valid", retryable=False) from error
        except Exception as error:  # of the libraries below, whatever a server sends
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
                return f"its answer is no HTTP ({one_line(str(error), 60)})"
        return describe(error)


def _system_reason(error: BaseException) -> str:
    """Return the system's reason why a connection failed; of several addresses, that of the first."""
    while cause := error.__cause__ or error.__context__:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    if not isinstance(error, OSError):
        return str(error)
    in_asyncio_words = "Connect call failed" in str(error)  # whatever the reason
    return os.strerror(error.errno or 0) if in_asyncio_words else error.strerror or str(error)


def _refusal(body: bytes) -> str:
    """Return the reason in the JSON body of a refusal, shortened and with a colon before it; empty if it has none."""
    try:
        reason = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    reason = reason.get("message", "") if isinstance(reason, dict) else reason
    return f": {one_line(str(reason), MOST)}" if reason else ""


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object that may not hold NaN or infinities.

    Raises:
        Failed: it is none.
    """
    try:
        value = json.loads(body, parse_constant=_refuse)
    except _NoNumberError as error:
        raise Failed(f"its answer holds {error}, which is no score") from error
    except (ValueError, RecursionError) as error:
        raise Failed(f'its answer is no JSON: "{one_line(body[:200].decode("utf-8", "replace"), 60)}"') from error
    if not isinstance(value, dict):
        raise Failed(f"its answer is no JSON object but {type(value).__name__}")
    return value


class _NoNumberError(Exception):
    """NaN or an infinity in JSON."""


def _refuse(constant: str) -> None:
    raise _NoNumberError(constant)


def ask_with_retries(servers: Sequence[str], ask: Callable[[str], T], retries: int, backoff_s: float) -> T:
    """Try the servers in turn, then all of them again up to ``retries`` times, with a pause before each round.

    The pause doubles from ``backoff_s`` up to a minute. A server whose failure is not retryable is not tried again.

    Raises:
        RewardError: all failed; it has the last server's reason.
    """
    remaining, tries, reason = list(servers), 0, ""
    for number in range(retries + 1):
        if number:
            time.sleep(min(LONGEST_WAIT_S, backoff_s * 2 ** (number - 1)))
        for server in list(remaining):
            tries += 1
            try:
                return ask(server)
            except Failed as error:
                reason = f"{server}: {error}"
                if not error.retryable:
                    remaining.remove(server)
        if not remaining:
            break
    times = "once" if tries == 1 else f"{tries} times"
    raise RewardError(f"{reason}; asked {times}, and nobody answered. Fix the server and continue with --resume.")
