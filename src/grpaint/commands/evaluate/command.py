"""Evaluate one model and print its scores, or several on the same prompts with records and a page."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpaint.commands.evaluate.candidates import (
    Candidate,
    Judging,
    check_equal_model,
    parse_candidates,
    source_of,
    weights_hash,
)
from grpaint.commands.evaluate.parts import REFERENCE, SHOWN, EvaluationParts
from grpaint.commands.evaluate.result import PROTOCOLS, Assessment
from grpaint.core.errors import ConfigError
from grpaint.judge import evaluate, judging_rewards
from grpaint.measures.score import with_deployment
from grpaint.parallel.join import join_group
from grpaint.parallel.world import ONE, World
from grpaint.report.console import Terminal, echo
from grpaint.report.pages.evaluation import alarm_lines, evaluation_page, measure_tables
from grpaint.report.terminal import evaluation_table, hacking_line
from grpaint.run.folder import find_run
from grpaint.run.saved import SavedModel, find_model
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
    with join_group() as world:
        world.phase = "evaluation"
        if len(sources) == 1 and out is None and not sources[0].endswith(":base"):
            _judge_one(source_of(sources[0]), sets, world, as_json=as_json, trust=trust)
        else:
            candidates, folder = parse_candidates(sources, trust=trust), out or Path("evaluation")
            _judge_several(candidates, sets, folder, world, few=few, keep=keep, as_json=as_json)


def _judge_several(
    candidates: Sequence[Candidate],
    sets: Sequence[str],
    folder: Path,
    world: World,
    *,
    few: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Evaluate models on the same prompts, with records and a page in ``folder``, and print the measures."""
    log = Terminal(stderr=True, quiet=not world.first).print
    result = assess(candidates, sets, folder, few=few, keep=keep, log=log, world=world)
    if not world.first:
        return
    console = Terminal()
    if as_json:
        echo(json.dumps(result))
        return
    for part in (*measure_tables(result), *alarm_lines(result)):
        console.print(part)
    console.print(f"page  {folder / 'evaluation.html'}", soft_wrap=True)


def judge_model(saved: SavedModel, sets: Sequence[str], world: World = ONE) -> dict[str, Any]:
    """Evaluate one model as its recipe says; return a line as in evaluations.jsonl.

    Raises:
        ConfigError, CheckpointError: it cannot be evaluated.
    """
    recipe, left_out = saved.judging(sets)
    _echo_first(left_out, world)
    policy = saved.open(recipe, world)
    if world.size > 1:
        check_equal_model(str(saved.file), weights_hash(policy, "average"), world)
    rewards, deployed = judging_rewards(recipe), recipe.deployed
    line = evaluate(policy, recipe.data, recipe.evaluate, rewards=rewards, world=world)
    if deployed:
        line = with_deployment(line, evaluate(policy, recipe.data, deployed, rewards=rewards, probe=False, world=world))
    return line


def _judge_one(source: str, sets: list[str], world: World, *, as_json: bool, trust: bool) -> None:
    """Evaluate one model and print its scores by category, and an alarm of reward hacking that its run raised."""
    saved = find_model(source, trust=trust)
    line = judge_model(saved, sets, world)
    if not world.first:
        return
    if as_json:
        echo(json.dumps(line))
        return
    console = Terminal()
    for each in (line, line["deploy"]) if "deploy" in line else (line,):
        console.print(evaluation_table(each))
    if (run := find_run(saved.file)) and (alarm := hacking_line(run.facts())):
        console.print(alarm, soft_wrap=True)


def _echo_first(lines: Sequence[str], world: World) -> None:
    """Print warnings, once for all processes."""
    for line in lines if world.first else ():
        echo(line, err=True)


def _with_equal_weights(candidates: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Lists of the names of candidates that have the same weights."""
    by_hash: dict[str, list[str]] = {}
    for name, facts in candidates.items():
        by_hash.setdefault(facts["weights"], []).append(name)
    return [names for names in by_hash.values() if len(names) > 1]


def assess(
    candidates: Sequence[Candidate],
    sets: Sequence[str],
    out: Path,
    *,
    few: bool,
    keep: bool,
    log: Log,
    world: World = ONE,
) -> dict[str, Any]:
    """Evaluate every candidate on the same prompts and noise; a repeated call continues from the records in ``out``.

    The processes of ``world`` divide the prompts; the first one writes and returns the result, others return nothing.

    Raises:
        ConfigError, CheckpointError: a model cannot be evaluated; raised before any weight is opened.
    """
    if any(candidate.name == REFERENCE for candidate in candidates):
        raise ConfigError(f'"{REFERENCE}" is the name of the true images; call the model something else.')
    recipe, left_out = candidates[-1].recipe(sets)
    _echo_first(left_out, world)
    judging = Judging.of(recipe)
    judging.check(candidates, sets)
    held_out = judging.held_out()
    judging.check_references(held_out, few=few)
    with contextlib.ExitStack() as stack:
        if world.first:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(out / ".lock", str(out), "Wait until it has ended, or take another --out."))
        parts = EvaluationParts(judging, out, held_out, log, keep, world)
        return _record_and_report(parts, candidates, sets)


def _record_and_report(parts: EvaluationParts, candidates: Sequence[Candidate], sets: Sequence[str]) -> dict[str, Any]:
    """Make the records that are missing, compute the measures from all records, and write them and the page."""
    if parts.judging.referenced:
        parts.record_references()
    facts = {candidate.name: parts.record_candidate(candidate, sets) for candidate in candidates}
    if not parts.world.first:
        return {}
    assessment = Assessment(parts, facts)
    for names in _with_equal_weights(facts):
        parts.log(f"{' and '.join(names)} have the same weights; what an earlier RUN began from is RUN:base.")
    result = assessment.result()
    references = {REFERENCE: assessment.reference["shown/free"]} if parts.judging.referenced else {}
    images = {
        protocol: references | {name: scores[f"shown/{part}"] for name, scores in assessment.scores.items()}
        for part, protocol in PROTOCOLS.items()
        if protocol in result["protocols"]
    }
    captions = [prompt.text for prompt in parts.prompts[:SHOWN]]
    for name, text in (
        ("json", json.dumps(result, indent=1) + "\n"),
        ("html", evaluation_page(result, images, captions)),
    ):
        write_atomic(parts.out / f"evaluation.{name}", text)
    return result
