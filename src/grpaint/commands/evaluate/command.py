"""Judge one model on the terminal, or several against each other with a record and a page."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from typer import echo

from grpaint.commands.evaluate.parts import REFERENCE, SHOWN, Parts
from grpaint.commands.evaluate.result import FREE, RECONSTRUCTION, Assessed
from grpaint.commands.evaluate.sources import Judging, Source, read_sources
from grpaint.core.errors import ConfigError
from grpaint.judge import evaluate, judging_rewards
from grpaint.report.pages.evaluation import alarms, page, terminal
from grpaint.report.terminal import hacking_line, summary
from grpaint.run.folder import RunFolder, find_checkpoint
from grpaint.run.saved import open_model
from grpaint.storage.atomic import write_atomic

Log = Callable[[str], None]


def run(sources: list[str], sets: list[str], out: Path | None, *, few: bool, keep: bool, as_json: bool) -> None:
    """Judge ``sources`` and print the result; several, or one with ``out``, are recorded and get a page.

    Raises:
        ConfigError, CheckpointError: a source cannot be judged.
    """
    if len(sources) == 1 and out is None and not sources[0].endswith(":base"):
        _judge_one(sources[0], sets, as_json=as_json)
        return
    folder, console = out or Path("evaluation"), Console()
    log = Console(stderr=True).print
    result = assess(read_sources(sources), sets, folder, few=few, keep=keep, log=log)
    if as_json:
        echo(json.dumps(result))
        return
    for part in (*terminal(result), *alarms(result)):
        console.print(part)
    console.print(f"page  {folder / 'evaluation.html'}", soft_wrap=True)


def _judge_one(source: str, sets: list[str], *, as_json: bool) -> None:
    policy, recipe = open_model(source, sets)
    line = evaluate(policy, recipe.data, recipe.evaluate, rewards=judging_rewards(recipe))
    if as_json:
        echo(json.dumps(line))
        return
    console = Console()
    console.print(summary(line))
    for folder in find_checkpoint(source).parents:
        if alarm := hacking_line(RunFolder(folder).facts()):
            console.print(alarm, soft_wrap=True)


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
