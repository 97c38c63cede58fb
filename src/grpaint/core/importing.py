"""Classes and functions by name, from installed modules and from a user's own files."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

OWN = "grpaint_user_"  # modules of a user's own files


def imported(target: str) -> Any:
    """What ``module:Name`` or ``path/to/file.py:name`` means.

    Raises:
        Exception: whatever importing it raises.
    """
    place, _, name = target.rpartition(":")
    return getattr(_module(place), name)


def own_place(error: BaseException) -> str:
    """Where in a user's own file ``error`` came from, as "file.py, line 3, in f"; empty where it did not."""
    files = {str(sys.modules[name].__file__) for name in list(sys.modules) if name.startswith(OWN)}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    file = Path(place).resolve()
    name = f"{OWN}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # stems may repeat
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"no file {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
