"""The command: check, make what is missing, then evaluation.json and evaluation.html from all that is there."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpaint.commands.evaluate.parts import REFERENCE, SHOWN, Parts
from grpaint.commands.evaluate.result import FREE, RECONSTRUCTION, Assessed
from grpaint.commands.evaluate.sources import Judging, Source
from grpaint.core.errors import ConfigError
from grpaint.report.evaluation_page import page
from grpaint.storage.atomic import write_atomic

Log = Callable[[str], None]


def _alike(sources: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The names of sources whose weights are the same."""
    by: dict[str, list[str]] = {}
    for name, known in sources.items():
        by.setdefault(known["weights"], []).append(name)
    return [names for names in by.values() if len(names) > 1]


def assess(
    sources: Sequence[Source], sets: Sequence[str], out: Path, *, few: bool, keep: bool, log: Log
) -> dict[str, Any]:
    """Judge every source on the same prompts and noise; repeat it to go on.

    Raises:
        ConfigError, CheckpointError: for what cannot be judged, before any weight is opened.
    """
    if any(source.name == REFERENCE for source in sources):
        raise ConfigError(f'"{REFERENCE}" is the name of the true images; call the model something else.')
    judging = Judging.of(sources[-1].recipe(sets))
    judging.check(sources, sets)
    held_out = judging.held_out()
    judging.check_references(held_out, few=few)
    parts = Parts(judging, out, held_out, log, keep)
    if judging.referenced:
        parts.reference()
    found = Assessed(parts, {source.name: parts.make(source, sets) for source in sources})
    for names in _alike(found.sources):
        log(f"{' and '.join(names)} have the same weights; what an earlier RUN began from is RUN:base.")
    result = found.result()
    true = {REFERENCE: found.reference["shown/free"]} if judging.referenced else {}
    shown = {
        protocol: true | {name: scores[f"shown/{part}"] for name, scores in found.scores.items()}
        for protocol, part in ((FREE, "free"), (RECONSTRUCTION, "reconstruction"))
        if part == "free" or true
    }
    captions = [prompt.text for prompt in parts.prompts[:SHOWN]]
    for name, text in (("json", json.dumps(result, indent=1) + "\n"), ("html", page(result, shown, captions))):
        write_atomic(out / f"evaluation.{name}", text)
    return result
