"""Who may ask: tokens in the address, hosts by name, and the headers that let nothing out."""

import contextlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpaint.core.errors import ConfigError
from grpaint.storage.reading import decode_text, read_regular
from grpaint.web.answers import TextAnswer

MOST_TOKEN = 4096  # bytes of the file with a token
LEAST_TOKEN = 16  # characters
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds a token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def private_app(tokens: Mapping[str, str], routes: Sequence[BaseRoute], hosts: Collection[str] = ()) -> Starlette:
    """Return an application whose addresses begin with a token: ``/TOKEN/`` and then one of ``routes``.

    ``tokens`` maps each token to its visitor, who is ``request.state.visitor``; it may grow while the server runs.
    ``hosts`` are names of this machine beside loopback. Every answer has ``HEADERS``, unless it sets its own.
    """
    guards = [
        Middleware(_Headers),
        Middleware(_KnownHost, names={*LOOPBACK_NAMES, *(name.lower() for name in hosts)}),
        Middleware(_TokenInPath, tokens=tokens),
    ]
    app = Starlette(routes=routes, middleware=guards, exception_handlers={HTTPException: _refuse})
    app.router.redirect_slashes = False
    return app


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return TextAnswer(error.status_code, error.detail, error.headers)


class _Headers:
    """Adds ``HEADERS`` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class _KnownHost:
    """Refuses a Host that is neither a known name nor the address that was connected to.

    A foreign site can let a name of its own lead here (DNS rebinding), and its scripts could then read the answers.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = _host_name(Headers(scope=scope).get("host", ""))
        if host and (host in self._names or host == scope["server"][0]):
            await self._app(scope, receive, send)
        else:
            await TextAnswer(421, "This server does not answer to that name.")(scope, receive, send)


def _host_name(header: str) -> str:
    """Return the name or address of a Host header, without its port; empty if it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class _TokenInPath:
    """Lets through what begins with a token, and says nothing about anything else."""

    def __init__(self, app: ASGIApp, tokens: Mapping[str, str]) -> None:
        self._app, self._tokens = app, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token, slash, _ = scope["path"][1:].partition("/")
        visitor = visitor_of(token, self._tokens) if slash else None
        if visitor is None:
            reason = "Open the whole address that grpaint printed, with its token and the slash at its end."
            await TextAnswer(403, reason)(scope, receive, send)
            return
        scope["root_path"] = f"/{token}"
        scope["state"]["visitor"] = visitor
        await self._app(scope, receive, send)


def visitor_of(token: str, tokens: Mapping[str, str]) -> str | None:
    """Return whose token it is, in a time that does not depend on how much of it is right; None for nobody's."""
    sent = token.encode("utf-8", "replace")
    matches = [name for known, name in tokens.items() if hmac.compare_digest(known.encode(), sent)]
    return matches[0] if matches else None


def read_token(command: str, variable: str | None, file: Path | None) -> str | None:
    """Return the token of an environment variable or a file, None if neither is named; errors name ``command``.

    Raises:
        ConfigError: both are named, or what is named is missing or too short.
    """
    if variable and file:
        raise ConfigError(f"{command}: --token-env and --token-file: give one of them.")
    if variable:
        token = os.environ.get(variable, "").strip()
        where = f"--token-env {variable}: that environment variable"
    elif file:
        try:
            token = decode_text(read_regular(file, MOST_TOKEN), str(file)).strip()
        except ConfigError as error:
            raise ConfigError(f"--token-file {error}") from None
        where = f"--token-file {file}: that file"
    else:
        return None
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{where} holds no token; it must be {LEAST_TOKEN} or more printable ASCII characters.")
    return token


def new_token() -> str:
    """Return a random token of 43 characters, all fit for an address."""
    return secrets.token_urlsafe(32)


def stored_token(file: Path) -> str:
    """Return the token in a file that only its owner can read; the file is made if it is not there.

    Raises:
        ConfigError: the file cannot be made or read, or holds no token.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            whole = file.with_name(f"{file.name}.{secrets.token_hex(4)}")  # so that no other process reads half of it
            with write_private(whole) as stream:
                stream.write(f"{new_token()}\n")
            with contextlib.suppress(FileExistsError):
                os.link(whole, file)
            whole.unlink()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}. Name a --token-file of yours.") from error
    try:
        token = read_token("", None, file)
    except ConfigError as error:
        raise ConfigError(f"{file}: holds no token; remove it, and a new one is made.") from error
    assert token
    return token


def write_private(file: Path) -> TextIO:
    """Open a new file for writing that only its owner can read.

    Raises:
        OSError: it exists, or cannot be made.
    """
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
