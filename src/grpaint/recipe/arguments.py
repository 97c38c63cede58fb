"""Settings given as Python values, written as the ``--set`` arguments of a command."""

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import tomli_w

from grpaint.core.errors import ConfigError
from grpaint.recipe.build import dump
from grpaint.recipe.catalog import kind_of


def set_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as ``--set`` arguments.

    Raises:
        ConfigError: a value cannot be written into run.toml.
    """
    return [f"{key}={_toml(value, str(key))}" for key, value in settings.items()]


def _plain(value: Any, key: str) -> Any:
    """Return what run.toml has for a piece, function, class or path; any other value as it is."""
    if isinstance(value, type) or inspect.isroutine(value):
        return _kind(value, key)
    if is_dataclass(value):
        cls, plain = type(value), dump(value)
        return plain if cls.__module__.startswith("grpaint.") else {"kind": _kind(cls, key), **plain}
    return "none" if value is None else str(value) if isinstance(value, Path) else value


def _kind(target: Any, key: str) -> str:
    """Return the name by which a later process finds a class or function: in the catalog, or as module:name."""
    if entry := isinstance(target, type) and kind_of(target):
        return entry[1]
    module, name = target.__module__, target.__qualname__
    if getattr(sys.modules.get(module), name, None) is not target:
        raise ConfigError(
            f"{key} = {name}: run.toml can name only what stands at the top of a module; define it there, under its "
            "own name."
        )
    return f"{module}:{name}"


def _toml(value: Any, key: str) -> str:
    """Return a value in one line of TOML."""
    value = _plain(value, key)
    if isinstance(value, Mapping):
        items = [
            f"{json.dumps(str(name), ensure_ascii=False)} = {_toml(item, f'{key}.{name}')}"
            for name, item in value.items()
        ]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item, key) for item in value)}]"
    try:
        return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()
    except TypeError as error:
        kind = type(value).__name__
        raise ConfigError(f"{key}: a value of {kind}, which TOML cannot hold; give a plain one.") from error
