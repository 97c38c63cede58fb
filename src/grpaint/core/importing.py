"""Import classes and functions by name, from installed modules or from a user's own files."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

USER_MODULE_PREFIX = "grpaint_user_"  # of modules loaded from a user's own files


def import_target(target: str) -> Any:
    """Import the object that ``module:name`` or ``path/to/file.py:name`` refers to.

    Raises:
        Exception: whatever the import raises.
    """
    module, _, name = target.rpartition(":")
    return getattr(_load_module(module), name)


def user_code_location(error: BaseException) -> str:
    """Locate the line of a user's own file that raised ``error``: "file.py, line 3, in f", or "" if none did."""
    files = {str(sys.modules[name].__file__) for name in list(sys.modules) if name.startswith(USER_MODULE_PREFIX)}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""


def _load_module(module_or_file: str) -> ModuleType:
    if not module_or_file.endswith(".py"):
        return importlib.import_module(module_or_file)
    file = Path(module_or_file).resolve()
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]  # two files may share a stem
    name = f"{USER_MODULE_PREFIX}{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ImportError(f"no file {module_or_file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
