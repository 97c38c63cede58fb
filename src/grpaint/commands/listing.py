"""``grpaint list``: methods, recipes, models, rewards and samplers by name, with a line about each."""

import importlib
import inspect
import json

from grpaint.core.errors import ConfigError
from grpaint.recipe.catalog import CATALOG
from grpaint.recipe.config import DEFAULT, locate, recipe_names
from grpaint.report.console import echo_lines
from grpaint.storage.reading import read_toml

TOPICS = ("methods", "recipes", "models", "rewards", "samplers")


def print_listing(topic: str, *, as_json: bool) -> None:
    """Print the names of a topic with a line about each.

    Raises:
        ConfigError: no such topic exists.
    """
    if topic not in TOPICS:
        raise ConfigError(f"list {topic}: no such list. There are: {', '.join(TOPICS)}.")
    names = listing(topic)
    width = max(map(len, names)) + 2
    lines = (f"{name:<{width}}{about}".rstrip() for name, about in names.items())
    echo_lines([json.dumps(names)] if as_json else lines)


def listing(topic: str) -> dict[str, str]:
    """The names of a topic, each with a line about it."""
    if topic == "recipes":
        return {name: _about(name) for name in recipe_names()}
    if topic == "methods":
        methods = {name.partition("/")[2] for name in recipe_names() if read_toml(locate(name)).get("stage") != "sft"}
        return {name: _about(name) for name in sorted(methods)}
    return {name: _doc(path) for name, path in sorted(CATALOG[topic].items())}


def _about(recipe: str) -> str:
    """The first comment line of a recipe, and a mark if it is a default."""
    first = locate(recipe).read_text(encoding="utf-8").splitlines()[0]
    mark = " (default)" if recipe in (*DEFAULT.values(), DEFAULT["train"].partition("/")[2]) else ""
    return first.lstrip("# ") + mark if first.startswith("#") else mark.strip()


def _doc(path: str) -> str:
    """The first docstring line of a piece, or the package that its import lacks."""
    module, _, name = path.partition(":")
    try:
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    except ImportError as error:
        return f"(not installed: {error})"
    return text.splitlines()[0] if text else ""
