"""Answers: JSON, pages, and files of a folder; each tells the browser to cache nothing unasked and guess nothing."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from grpaint.core.errors import ConfigError
from grpaint.storage.confined import inside
from grpaint.storage.reading import read_regular

PICTURE_TYPES = {".webp": "image/webp", ".png": "image/png"}
MOST_PICTURE = 64 << 20  # bytes
LINGER_S = 2.0


class _Answer(Response):
    """An answer that, if it refuses, reads the rest of the request for a while: closing earlier loses the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(LINGER_S):
            while self.status_code >= 400 and (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.body"})


class JsonAnswer(_Answer):
    """A JSON answer."""

    def __init__(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json.dumps(content, allow_nan=False), status, headers, "application/json")


class TextAnswer(_Answer):
    """A sentence, for who asked in vain."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence, status, headers, "text/plain")


def tagged(request: Request, body: bytes, media_type: str) -> Response:
    """Return an answer with an ETag, or 304 without a body if the browser has the same one."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}  # asked for again each time, by its tag
    if tag in request.headers.get("If-None-Match", "").split(", "):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def page_answer(html: str) -> Response:
    """Return a page, whose own policy (in its head) allows the scripts that are in it by their hashes."""
    policy = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    return Response(html, headers={"Content-Security-Policy": policy}, media_type="text/html")


def picture_answer(request: Request, folder: Path, name: str) -> Response:
    """Return a picture below ``folder``; 204 if none is there, since the page's owner may have replaced it.

    Raises:
        HTTPException: it is no picture, lies outside, or cannot be read.
    """
    kind = PICTURE_TYPES.get(Path(name).suffix)
    try:
        if kind:
            file = inside(folder, name, "a request")
            return (
                tagged(request, read_regular(file, MOST_PICTURE), kind) if file.exists() else Response(status_code=204)
            )
    except (ConfigError, OSError):  # OSError: a name that is too long
        pass
    raise HTTPException(404, "no such picture")
