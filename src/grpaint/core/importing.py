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
_user_modules: set[str] = set()  # names of the modules that were imported for a user


def import_target(target: str) -> Any:
    """Import the object that ``module:name`` or ``path/to/file.py:name`` refers to.

    Raises:
        Exception: whatever the import raises.
    """
    module, _, name = target.rpartition(":")
    return getattr(_load_module(module), name)


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
