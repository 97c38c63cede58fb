"""Import classes and functions by name, from installed modules or from a user's own files.

Inside :func:`data_only` nothing of a user's own is imported: that is how settings from a file stay data.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from grpaint.core.errors import ConfigError

USER_MODULE_PREFIX = "grpaint_user_"  # of modules loaded from a user's own files
_user_modules: set[str] = set()  # names of the modules that were imported for a user


class ForeignCode(ConfigError):
    """Settings from a file that the user did not type name code, ``target``, which was not imported."""

    def __init__(self, message: str, target: str) -> None:
        super().__init__(message)
        self.target = target


class _Foreign(NamedTuple):
    """The file that settings come from, and the code that the user typed besides."""

    file: Path
    typed: frozenset[str]


_foreign: ContextVar[_Foreign | None] = ContextVar("foreign", default=None)


@contextmanager
def data_only(file: Path, typed: Collection[str] = ()) -> Iterator[None]:
    """Inside the block, settings are data: to import code of a user's own raises :class:`ForeignCode`.

    ``file``: where the settings come from, for the error. ``typed``: what the user has typed, such as
    "file.py:Name", and may be imported all the same.
    """
    token = _foreign.set(_Foreign(file, frozenset(typed)))
    try:
        yield
    finally:
        _foreign.reset(token)


def check_import(target: str, setting: str) -> None:
    """Refuse code of a user's own that a file names; ``setting`` is the key whose value ``target`` is.

    Raises:
        ForeignCode: inside :func:`data_only`, unless the user has typed ``target``.
    """
    foreign = _foreign.get()
    if foreign and target not in foreign.typed:
        raise ForeignCode(
            f'{foreign.file}: asks for code, {setting} = "{target}", which would run with your rights; settings from '
            "a file are data. If you trust who made the file, repeat the command with --trust.",
            target,
        )


def import_target(target: str, setting: str) -> Any:
    """Import what ``module:name`` or ``path/to/file.py:name`` refers to: a user's own class or function.

    ``setting``: the key whose value ``target`` is.

    Raises:
        ForeignCode: inside :func:`data_only`.
        Exception: whatever the import raises.
    """
    check_import(target, setting)
    module, _, name = target.rpartition(":")
    loaded = _load_module(module)
    try:
        return getattr(loaded, name)
    except AttributeError as error:
        own = sorted(key for key, value in vars(loaded).items() if getattr(value, "__module__", "") == loaded.__name__)
        if not module.endswith(".py"):
            raise
        raise ImportError(f"no {name} in {module}; it has {', '.join(own) or 'no class and no function'}") from error


def import_packaged(target: str) -> Any:
    """Import a class of grpaint by its ``module:name``, which comes from a table in our own code."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def user_code_location(error: BaseException) -> str:
    """Locate the line of a user's own code that raised ``error``: "file.py, line 3, in f", or "" if none did.

    An exception that asks for the end of the process, such as SystemExit, is always a user's: where no file that a
    recipe names is on its way, it is located where it was raised.
    """
    frames = traceback.extract_tb(error.__traceback__)[::-1]
    files = {getattr(sys.modules.get(name), "__file__", None) for name in _user_modules}
    own = [frame for frame in frames if frame.filename in files]
    if not isinstance(error, Exception):
        own = own or frames
    return f"{own[0].filename}, line {own[0].lineno}, in {own[0].name}" if own else ""


def _load_module(module_or_file: str) -> ModuleType:
    if not module_or_file.endswith(".py"):
        if not module_or_file.startswith("grpaint."):
            _user_modules.add(module_or_file)
        return importlib.import_module(module_or_file)
    file = Path(module_or_file).resolve()
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]  # two files may share a stem
    name = f"{USER_MODULE_PREFIX}{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"no file {module_or_file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _user_modules.add(name)
    spec.loader.exec_module(module)
    return module
