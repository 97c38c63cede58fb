"""run.json: what a run records of itself, none of which it needs to go on."""

from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable
from grpaint.measures.line_check import is_alarm, is_number
from grpaint.storage.reading import read_object

_KINDS = (("sets", list), ("status", str), ("iterations", int))


def read_facts(file: Path) -> dict[str, Any]:
    """Read a run.json; empty where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    facts = read_object(file) if file.exists() else {}
    for key, kind in _KINDS:
        if not isinstance(facts.get(key, kind()), kind):
            raise ConfigError(f"{file}: {key} = {printable(repr(facts[key]), 40)} is not what a run writes.")
    if not all(isinstance(item, str) for item in facts.get("sets", [])):
        raise ConfigError(f"{file}: sets is not a list of texts.")
    if "hacking" in facts and not (is_alarm(facts["hacking"]) and is_number(facts["hacking"].get("best_before"))):
        raise ConfigError(f"{file}: hacking is not what a run writes.")
    return facts
