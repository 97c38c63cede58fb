"""HTML pages from templates: autoescaped, with styles, scripts and data inline, so that a page opens from ``file://``.

A page loads nothing but pictures and, if it is live, later numbers from the server that it came from. Its content
security policy allows the scripts and the style sheet that are in it, by their hashes, and nothing else: no text of a
run can become code.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

CHARTS = ("uplot/uPlot.iife.min.js", "charts.js")  # the scripts of a page with curves
CHART_STYLES = ("uplot/uPlot.min.css",)


def render(
    template: str,
    *,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    data: Any = None,
    live: bool = False,
    **values: Any,
) -> str:
    """Return the page of a template in ``report/templates``.

    ``scripts`` and ``styles`` are files of ``report/static`` to put inline, in this order; every page has style.css.
    ``data`` is the JSON that scripts read; ``live`` lets them ask the page's own server for more. ``values`` are
    what the template names; one that is missing raises.
    """
    sheets = [_static(name) for name in ("style.css", *styles)]
    programs = [_static(name) for name in ("page.js", *scripts)]
    policy = {
        "default-src": ["'none'"],
        "connect-src": ["'self'" if live else "'none'"],
        "img-src": ["'self'", "file:", "data:"],
        "script-src": [_digest(text) for text in programs],
        "style-src": [_digest(text) for text in sheets],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return (
        _environment()
        .get_template(template)
        .render(
            policy="; ".join(f"{name} {' '.join(sources)}" for name, sources in policy.items()),
            # the texts of this package's own files, which hold no end tag
            sheets=[Markup(text) for text in sheets],
            programs=[Markup(text) for text in programs],
            data=finite(data or {}),
            live=live,
            **values,
        )
    )


def finite(value: Any) -> Any:
    """Return a value of JSON with None in place of NaN and infinity, which JSON cannot spell."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [finite(item) for item in value]
        case dict():
            return {key: finite(item) for key, item in value.items()}
    return value


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("grpaint.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _static(name: str) -> str:
    return files("grpaint.report").joinpath("static", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return the source expression that allows an inline script or style sheet of this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
