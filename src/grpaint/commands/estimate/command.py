"""Print the forecast of a recipe, and the settings to change if it does not fit a GPU."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from grpaint.commands.estimate import terminal
from grpaint.commands.estimate.calibration import calibrate
from grpaint.commands.estimate.deadline import TimeOver, explained, time_limit
from grpaint.commands.estimate.forecast import Forecast, forecast, parse_bytes
from grpaint.commands.estimate.levers import Lever, Predict, find_levers
from grpaint.commands.estimate.ranks import forecast_ranks
from grpaint.commands.estimate.rehearsal import TraceCache
from grpaint.core.runtime import Device
from grpaint.recipe.build import Plain
from grpaint.recipe.config import DEFAULT, locate, override, resolve, stage_of
from grpaint.recipe.trust import check_rewards, recipe_origin
from grpaint.report.console import echo
from grpaint.storage.reading import read_toml


def run(  # noqa: PLR0913 - reason: the options of the command
    name: str | None,
    sets: list[str],
    gpu: str | None,
    *,
    measure: bool,
    as_json: bool,
    trust: bool = False,
    minutes: float = 1.0,
    processes: tuple[int, int] | None = None,
) -> None:
    """Print what a recipe needs; with ``gpu``, such as "24GB", also whether it fits and which settings make it fit.

    With ``measure`` the weights are opened and two iterations are timed. ``trust``: a run's own recipe may name code.
    ``minutes`` limits the counting, not the timing. ``processes``: also what a rank needs, of so many on so many
    machines; ``gpu`` is then a rank's.

    Raises:
        ConfigError, CheckpointError: the recipe could not run, or its model is not one of grpaint's own.
        TimeOver: there is no answer after ``minutes``.
    """
    end = time.monotonic() + 60 * minutes
    name = DEFAULT["train"] if name is None else name
    table, stage, limit = override(read_toml(locate(name)), sets), stage_of(name), parse_bytes(gpu) if gpu else 0
    device: Device | None = "cuda" if gpu else None
    origin = recipe_origin(name, trust=trust)
    if measure:
        check_rewards(read_toml(origin.file), origin)
    with origin.guard(sets):
        with explained([]), time_limit(minutes):
            prediction = forecast(table, stage, device)
            ranks = forecast_ranks(table, stage, device, *processes) if processes else None
        limited = ranks.rank(prediction.recipe) if ranks else prediction
        fits = not limit or limited.fits(limit)
        count = processes[0] // processes[1] if processes else 1
        predict = _predictor(stage, device, processes)
        search = iter(()) if fits else find_levers(table, limited, predict, limit=limit, ranks=count)
        levers, complete = _levers_until(end, search, minutes)
        times = calibrate(prediction) if measure else None
    if as_json:
        plain = prediction.plain() | ({"limit": limit, "fits": fits} if limit else {})
        plain |= {"times": vars(times)} if times else {}
        plain |= {"processes": ranks.plain(limit)} if ranks else {}
        echo(json.dumps(plain | {"levers": [{"sets": lever.sets, "peak": lever.forecast.peak} for lever in levers]}))
        return
    for line in terminal.forecast_lines(prediction, times):
        echo(line)
    for line in ranks.lines(limit) if ranks else ():
        echo(line)
    if limit:
        verdict = "fits" if fits else "does not fit. The peak after each of, in this order:"
        echo(f"{terminal.gib(limit)} GiB: {verdict}")
        for line in terminal.lever_lines(levers):
            echo(line)
        if complete and not (fits or (levers and levers[-1].forecast.fits(limit))):
            echo("  and that is not enough: take a smaller model")


def _predictor(stage: str, device: Device | None = None, processes: tuple[int, int] | None = None) -> Predict:
    """Return what forecasts changed settings: for one process, or for a rank of so many on so many machines."""

    def predict(changed: Plain, cache: TraceCache) -> Forecast:
        if not processes:
            return forecast(changed, stage, device, cache)
        recipe, _ = resolve(changed, stage)
        return forecast_ranks(changed, stage, device, *processes, cache).rank(recipe)

    return predict


def _levers_until(end: float, search: Iterator[Lever], minutes: float) -> tuple[list[Lever], bool]:
    """Return the levers that a search gives until the time ``end``, and whether it came to its own end."""
    levers: list[Lever] = []
    try:
        with time_limit(max(end - time.monotonic(), 1) / 60):
            levers.extend(search)
    except TimeOver:
        echo(f"plan: not every setting was tried within --minutes {minutes:g}.", err=True)
        return levers, False
    return levers, True


def advice(settings: Mapping[str, Any], stage: str, phase: str) -> Iterator[str]:
    """Yield lines with the settings that would have lowered the peak of ``phase``, which ran out of memory."""
    prediction = forecast(dict(settings), stage)
    yield f"Each of these lowers the peak in {phase}, the cheapest first; the predicted peak with those before it:"
    yield from terminal.lever_lines(find_levers(dict(settings), prediction, _predictor(stage), phase=phase), phase)
