"""Evaluate one model and print its scores, or several on the same prompts with records and a page."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpaint.commands.evaluate.candidates import Candidate, Judging, parse_candidates
from grpaint.commands.evaluate.parts import REFERENCE, SHOWN, EvaluationParts
from grpaint.commands.evaluate.result import FREE, RECONSTRUCTION, Assessment
from grpaint.core.errors import ConfigError
from grpaint.judge import evaluate, judging_rewards
from grpaint.report.console import Terminal, echo
from grpaint.report.pages.evaluation import alarm_lines, evaluation_page, measure_tables
from grpaint.report.terminal import evaluation_table, hacking_line
from grpaint.run.folder import find_run
from grpaint.run.saved import find_model
from grpaint.storage.atomic import write_atomic
from grpaint.storage.lock import Lock

Log = Callable[[str], None]


def run(
    sources: list[str], sets: list[str], out: Path | None, *, few: bool, keep: bool, as_json: bool, trust: bool
) -> None:
    """Evaluate the models of ``sources`` and print the result; several, or one with ``out``, get records and a page.

    ``trust``: their settings may name code.

    Raises:
        ConfigError, CheckpointError: a model cannot be evaluated.
    """
    if len(sources) == 1 and out is None and not sources[0].endswith(":base"):
        _judge_one(sources[0], sets, as_json=as_json, trust=trust)
        return
    folder, console = out or Path("evaluation"), Terminal()
    log = Terminal(stderr=True).print
    result = assess(parse_candidates(sources, trust=trust), sets, folder, few=few, keep=keep, log=log)
    if as_json:
        echo(json.dumps(result))
        return
    for part in (*measure_tables(result), *alarm_lines(result)):
        console.print(part)
    console.print(f"page  {folder / 'evaluation.html'}", soft_wrap=True)


def _judge_one(source: str, sets: list[str], *, as_json: bool, trust: bool) -> None:
    """Evaluate one model and print its scores by category, and an alarm of reward hacking that its run raised."""
    saved = find_model(source, trust=trust)
    recipe, left_out = saved.judging(sets)
    for text in left_out:
        echo(text, err=True)
    policy = saved.open(recipe)
    line = evaluate(policy, recipe.data, recipe.evaluate, rewards=judging_rewards(recipe))
    if as_json:
        echo(json.dumps(line))
        return
    console = Terminal()
    console.print(evaluation_table(line))
    if (run := find_run(saved.file)) and (alarm := hacking_line(run.facts())):
        console.print(alarm, soft_wrap=True)


def _with_equal_weights(candidates: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Lists of the names of candidates that have the same weights."""
    by_hash: dict[str, list[str]] = {}
    for name, facts in candidates.items():
        by_hash.setdefault(facts["weights"], []).append(name)
    return [names for names in by_hash.values() if len(names) > 1]


def assess(
    candidates: Sequence[Candidate], sets: Sequence[str], out: Path, *, few: bool, keep: bool, log: Log
) -> dict[str, Any]:
    """Evaluate every candidate on the same prompts and noise; a repeated call continues from the records in ``out``.

    Raises:
        ConfigError, CheckpointError: a model cannot be evaluated; raised before any weight is opened.
    """
    if any(candidate.name == REFERENCE for candidate in candidates):
        raise ConfigError(f'"{REFERENCE}" is the name of the true images; call the model something else.')
    recipe, left_out = candidates[-1].recipe(sets)
    for line in left_out:
        echo(line, err=True)
    judging = Judging.of(recipe)
    judging.check(candidates, sets)
    held_out = judging.held_out()
    judging.check_references(held_out, few=few)
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out / ".lock", str(out), "Wait until it has ended, or take another --out."):
        parts = EvaluationParts(judging, out, held_out, log, keep)
        return _record_and_report(parts, candidates, sets)


def _record_and_report(parts: EvaluationParts, candidates: Sequence[Candidate], sets: Sequence[str]) -> dict[str, Any]:
    """Make the records that are missing, compute the measures from all records, and write them and the page."""
    if parts.judging.referenced:
        parts.record_references()
    facts = {candidate.name: parts.record_candidate(candidate, sets) for candidate in candidates}
    assessment = Assessment(parts, facts)
    for names in _with_equal_weights(facts):
        parts.log(f"{' and '.join(names)} have the same weights; what an earlier RUN began from is RUN:base.")
    result = assessment.result()
    references = {REFERENCE: assessment.reference["shown/free"]} if parts.judging.referenced else {}
    images = {
        protocol: references | {name: scores[f"shown/{part}"] for name, scores in assessment.scores.items()}
        for protocol, part in ((FREE, "free"), (RECONSTRUCTION, "reconstruction"))
        if part == "free" or references
    }
    captions = [prompt.text for prompt in parts.prompts[:SHOWN]]
    for name, text in (
        ("json", json.dumps(result, indent=1) + "\n"),
        ("html", evaluation_page(result, images, captions)),
    ):
        write_atomic(parts.out / f"evaluation.{name}", text)
    return result
