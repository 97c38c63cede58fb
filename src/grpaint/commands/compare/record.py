"""The record of a finished run of a comparison, checked before it is used: it may come from another machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.core.text import printable
from grpaint.measures.line_check import is_number
from grpaint.measures.score import score_name
from grpaint.storage.reading import read_object

COSTS = ("evaluations", "cpu_s", "reward_calls")  # of an evaluation of a run, in the order in which they are summed
RECORDED_SCORES = ("iteration", "score", "strict", "soft", "background", "patch_energy", "denoising_loss")

Record = dict[str, Any]


def read_record_of(file: Path, fingerprint: str, identity: Mapping[str, Any]) -> Record:
    """Read a record; ``identity``: the values that say whose it is, such as its method and seed.

    Raises:
        ConfigError: it is damaged, or was made with other settings than ``fingerprint`` is of.
    """
    try:
        record = read_object(file)
    except ConfigError as error:
        raise ConfigError(f"{error} Remove it, and it is written again.") from None
    if record.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{file}: made with other settings (budget, recipe, search or a file of your own) than this command's. "
            "Take another --out, or remove it."
        )
    if wrong := _damage(record, identity):
        raise ConfigError(f"{file}: damaged: {wrong} is not what a run records. Remove it, and it is written again.")
    return record


def _damage(record: Record, identity: Mapping[str, Any]) -> str:
    """Name the first value that no run records; empty if there is none."""
    scores, pictures = record.get("scores"), record.get("pictures")
    wrong = [key for key, value in identity.items() if record.get(key) != value]
    wrong += [key for key in ("evaluations", "cpu_s") if not is_number(record.get(key), finite=True)]
    if not isinstance(pictures, str) or not re.fullmatch(r"|data:image/png;base64,[A-Za-z0-9+/=]+", pictures):
        wrong.append("pictures")
    if not isinstance(scores, list) or not scores or not all(isinstance(line, dict) for line in scores):
        return [*wrong, "scores"][0]
    name = score_name(scores[-1])
    wrong += [f"scores[{row}].{key}" for row, line in enumerate(scores) for key in _not_numbers(line, name)]
    guided = record.get("base_guided")
    if guided is not None and not (
        isinstance(guided, dict) and all(is_number(guided.get(key), finite=True) for key in ("guidance", name))
    ):
        wrong.append("base_guided")
    return printable(wrong[0], 80) if wrong else ""


def _not_numbers(line: Mapping[str, Any], score: str) -> list[str]:
    """The keys of an evaluation's scores and costs that hold no number, and "score" if it names another one."""
    keys = {"iteration", score, *COSTS, *(line.keys() & RECORDED_SCORES)} - {"score"}
    other = ["score"] if score_name(line) != score or score == "score" else []
    return [*other, *(key for key in sorted(keys) if not is_number(line.get(key), finite=True))]
