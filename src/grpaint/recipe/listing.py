"""What there is by name, with a line about each."""

import importlib
import inspect

from grpaint.recipe.catalog import CATALOG
from grpaint.recipe.config import DEFAULT, locate, names, read_toml

TOPICS = ("methods", "recipes", "models", "rewards", "samplers")


def listing(topic: str) -> dict[str, str]:
    """Names to a line about each."""
    if topic == "recipes":
        return {name: _about(name) for name in names()}
    if topic == "methods":
        methods = {name.partition("/")[2] for name in names() if read_toml(locate(name)).get("stage") != "sft"}
        return {name: _about(name) for name in sorted(methods)}
    return {name: _doc(path) for name, path in sorted(CATALOG[topic].items())}


def _about(recipe: str) -> str:
    """The first comment line of a recipe."""
    first = locate(recipe).read_text(encoding="utf-8").splitlines()[0]
    mark = " (default)" if recipe in (*DEFAULT.values(), DEFAULT["train"].partition("/")[2]) else ""
    return first.lstrip("# ") + mark if first.startswith("#") else mark.strip()


def _doc(path: str) -> str:
    module, _, name = path.partition(":")
    try:
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    except ImportError as error:
        return f"(not installed: {error})"
    return text.splitlines()[0] if text else ""
