"""Read a run folder for its page: nothing is written or locked, and what is missing or damaged becomes a note."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.text import without_surrogates
from grpaint.measures.line_check import is_number, unlike_a_group
from grpaint.recipe.config import DEFAULT, Plain, locate, open_recipe
from grpaint.recipe.settings import Optimisation
from grpaint.report.run_record import DrawnPictures, Group, LastRollout, Line, RunRecord
from grpaint.run.facts import read_facts
from grpaint.run.lines import EVALUATIONS, METRICS, PICTURES, end_lines, whole_lines
from grpaint.run.pictures import PROMPTS_FILE, ROLLOUT, ROLLOUT_FILE, held_out_file, rollout_file
from grpaint.run.resume import setting_differences
from grpaint.storage.files import numbered
from grpaint.storage.reading import read_object, read_toml

_SWITCHES = ("--resume",)  # the options of train and sft without a value


def read_record(folder: Path) -> RunRecord:
    """Read what a run has recorded.

    Raises:
        ConfigError: ``folder`` is no run folder.
    """
    if not is_run(folder):
        raise ConfigError(f"{folder}: no run folder (it has neither run.toml nor {METRICS}); name runs/NAME.")
    notes: list[str] = []
    facts = _read(notes, folder, lambda: read_facts(folder / "run.json"), {})
    settings = _read(notes, folder, lambda: _settings(folder / "run.toml"), {})
    metrics, evaluations, pictures = (_lines(notes, folder / name) for name in (METRICS, EVALUATIONS, PICTURES))
    drawings = [_drawing(line, folder) for line in sorted(pictures, key=lambda line: line["iteration"])]
    if not pictures:
        notes.append("The run has kept no pictures over time: an earlier release made it, or it has drawn none yet.")
    if missing := sum(file is None for drawing in drawings for file in drawing.files):
        notes.append(f"{missing} held-out picture{'s are' if missing > 1 else ' is'} missing in samples/held-out.")
    if evaluations and evaluations[0]["iteration"] != 0:
        notes.append(f"{EVALUATIONS} has no line of iteration 0: nothing can be compared with the base.")
    packaged, changes = _packaged(notes, folder, facts, settings)
    return RunRecord(
        name=without_surrogates(folder.resolve().name),
        path=str(folder),
        facts=facts,
        settings=settings,
        iterations=_iterations(settings, metrics),
        packaged=packaged,
        changes=changes,
        metrics=metrics,
        evaluations=evaluations,
        captions=_captions(notes, folder, drawings),
        drawings=drawings,
        rollout=_read(notes, folder, lambda: _rollout(folder), None),
        silent_s=silent_s(folder),
        notes=notes,
    )


def read_outline(folder: Path) -> RunRecord:
    """Read run.json, run.toml, and the first and last lines alone: what a table of many runs shows.

    ``packaged`` is the name of the recipe that the run began from, packaged or not.
    """
    notes: list[str] = []
    facts = _read(notes, folder, lambda: read_facts(folder / "run.json"), {})
    settings = _read(notes, folder, lambda: _settings(folder / "run.toml"), {})
    metrics, evaluations = (
        _read(notes, folder, partial(end_lines, folder / name), []) for name in (METRICS, EVALUATIONS)
    )
    return RunRecord(
        name=without_surrogates(folder.name),
        path=str(folder),
        facts=facts,
        settings=settings,
        iterations=_iterations(settings, metrics),
        packaged=_recipe_argument(facts.get("command"), str(settings.get("stage"))),
        metrics=metrics,
        evaluations=evaluations,
        silent_s=silent_s(folder),
        notes=notes,
    )


def is_run(folder: Path) -> bool:
    """Return whether a folder holds any file that tells of a run."""
    return any((folder / name).is_file() for name in ("run.toml", "run.json", METRICS, EVALUATIONS))


def _read(notes: list[str], folder: Path, read: Callable[[], Any], otherwise: Any) -> Any:
    """Return what ``read`` returns, or ``otherwise`` with a note where a file is missing or damaged."""
    try:
        return read()
    except (ConfigError, CheckpointError) as error:
        notes.append(f"Left out: {str(error).removeprefix(f'{folder}{os.sep}')}")
        return otherwise


def _settings(file: Path) -> Plain:
    """Read a run.toml.

    Raises:
        ConfigError: it is missing or damaged.
    """
    settings = read_toml(file)
    for key, kind in (("stage", str), ("train", dict), ("evaluate", dict)):
        if not isinstance(settings.get(key, kind()), kind):
            raise ConfigError(f"{file}: {key} is not what a run writes.")
    return settings


def _lines(notes: list[str], file: Path) -> list[dict[str, Any]]:
    lines, damage = _read(notes, file.parent, lambda: whole_lines(file), ([], ""))
    if damage:
        notes.append(f"{file.name}: {damage}, left out.")
    return lines


def _existing(folder: Path, files: list[str]) -> list[str | None]:
    """Return the files of one folder of the run, each None where it is missing."""
    try:
        with os.scandir(folder / files[0].rpartition("/")[0]) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
    except (OSError, IndexError):
        names = set()
    return [file if file.rpartition("/")[2] in names else None for file in files]


def _captions(notes: list[str], folder: Path, drawings: list[DrawnPictures]) -> list[str]:
    """Return the held-out prompts, or those of the pictures in a run of a release that did not record them."""
    file = folder / PROMPTS_FILE
    captions = _read(notes, folder, lambda: read_object(file), {}).get("captions") if file.exists() else None
    if isinstance(captions, list) and all(isinstance(text, str) for text in captions):
        return captions
    return list(drawings[-1].captions) if drawings else []


def _drawing(line: Line, folder: Path) -> DrawnPictures:
    """Return the pictures of a line of pictures.jsonl; their names are computed, none is taken from the line."""
    files = [held_out_file(line["iteration"], number) for number in range(len(line["captions"]))]
    return DrawnPictures(
        line["iteration"], line["captions"], line["kinds"], line["score"], line["scores"], _existing(folder, files)
    )


def _rollout(folder: Path) -> LastRollout | None:
    """Return the newest rollout whose pictures were kept, if there is one.

    Raises:
        ConfigError: its rollout.json is missing or damaged.
    """
    places = numbered(folder / "samples" / ROLLOUT)
    if not places:
        return None
    file = places[-1] / ROLLOUT_FILE
    values = read_object(file)
    groups, prompts = values.get("groups"), values.get("prompts")
    if not (isinstance(groups, list) and is_number(prompts) and is_number(values.get("iteration"))):
        raise ConfigError(f"{file}: without iteration, prompts and groups.")
    if wrong := next(filter(None, map(unlike_a_group, groups)), ""):
        raise ConfigError(f"{file}: {wrong} is not what a run writes.")
    place = places[-1].relative_to(folder).as_posix()

    def group_of(number: int, group: dict[str, Any]) -> Group:
        files = [f"{place}/{rollout_file(number, member)}" for member in range(len(group["total"]))]
        values = {key: group[key] for key in ("caption", "kind", "rewards", "total", "advantage")}
        return Group(**values, files=_existing(folder, files))

    return LastRollout(values["iteration"], values["prompts"], [group_of(n, group) for n, group in enumerate(groups)])


def _iterations(settings: Plain, metrics: list[dict[str, Any]]) -> int | None:
    """Return how many iterations the whole run has."""
    train = settings.get("train", {})
    try:
        limits = {key: train[key] for key in ("iterations", "evaluations") if key in train}
        length = Optimisation(learning_rate=1.0, **limits)
        last = metrics[-1] if metrics else {"iteration": 0, "cost/model_evaluations": 0}
        return length.total(last["iteration"], int(last["cost/model_evaluations"]))
    except (TypeError, ValueError, OverflowError):  # a run.toml that is damaged, or that somebody has written
        return None


def _packaged(
    notes: list[str], folder: Path, facts: Mapping[str, Any], settings: Plain
) -> tuple[str | None, list[tuple[str, Any, Any]]]:
    """Return the packaged recipe that a run began from, and the settings in which the run differs from it."""
    stage = settings.get("stage")
    name = _recipe_argument(facts.get("command"), str(stage))
    if name is None or name.endswith(".toml") or stage not in DEFAULT:
        return None, []
    differences = _read(notes, folder, lambda: list(setting_differences(_whole_recipe(name, stage), settings)), None)
    if differences is None:
        return None, []
    return str(locate(name).relative_to(locate(name).parents[1]).with_suffix("")), differences


@cache
def _whole_recipe(name: str, stage: str) -> Plain:
    return open_recipe(name, stage)[1]


def _recipe_argument(command: Any, stage: str) -> str | None:
    """Return the RECIPE argument of a run's command, by default the stage's; None if the command is no training."""
    if not (isinstance(command, list) and command[1:2] == [stage] and all(isinstance(word, str) for word in command)):
        return None
    words = iter(command[2:])
    for word in words:
        if not word.startswith("-"):
            return word
        if "=" not in word and word not in _SWITCHES:
            next(words, None)  # its value
    return DEFAULT.get(stage)


def silent_s(folder: Path) -> float:
    """Return the seconds since the run wrote its last line; 0 if it has written none."""
    times = []
    for name in (METRICS, EVALUATIONS):
        with contextlib.suppress(OSError):  # not there yet, or no more
            times.append((folder / name).stat().st_mtime)
    return max(0.0, time.time() - max(times)) if times else 0.0
