"""Classes and functions by name, from installed modules and from a user's own files."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def imported(target: str) -> Any:
    """What ``module:Name`` or ``path/to/file.py:name`` means.

    Raises:
        Exception: whatever importing it raises.
    """
    place, _, name = target.rpartition(":")
    return getattr(_module(place), name)


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    file = Path(place).resolve()
    name = f"grpaint_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"no file {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
