"""Format a forecast as lines for the terminal."""

from collections.abc import Iterable, Iterator

from grpaint.commands.estimate.calibration import Times
from grpaint.commands.estimate.forecast import CONTEXT, GIB, SLACK, Forecast, overhead
from grpaint.commands.estimate.levers import Lever, largest_part


def gib(amount: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{amount / GIB:.2f}"


def forecast_lines(forecast: Forecast, times: Times | None = None) -> Iterator[str]:
    """Yield the memory by phase, model evaluations and disk of a recipe, and its times if they were measured."""
    memory = forecast.memory
    where = f"{forecast.device}, {forecast.precision}"
    yield f"{memory.parameters:,} parameters, {memory.trainable:,} of them trained; {where}"
    yield "predicted peak memory, GiB:"
    yield f"  {'phase':10}{'peak':>8} ={'weights':>9}{'copies':>9}{'optimizer':>11}{'the rest':>10}"
    for name, peak in memory.peaks.items():
        state = 0 if name == "load" else memory.optimizer
        rest = peak - memory.weights - memory.copies - state
        parts = f"{gib(memory.weights):>9}{gib(memory.copies):>9}{gib(state):>11}{gib(rest):>10}"
        yield f"  {name:10}{gib(peak):>8} ={parts}"
    most = max(memory.peaks.values())
    if forecast.device == "cuda":
        assumed = f"{gib(CONTEXT)} for the context and {SLACK:.0%} for workspaces and gaps, both assumed"
        yield f"  on a GPU {gib(most)} + {gib(overhead(most, forecast.device))} = {gib(forecast.peak)}: {assumed}"
    else:
        yield "  without the process itself and the workspace of kernels"
    yield "  without what rewards need for themselves: they read values, which a plan does not have"
    if forecast.missing:
        yield f"not counted: {forecast.missing}; one caption of 20 words stands in for its prompts and images"
    each, every, judging = forecast.evaluations
    yield f"model evaluations: {each:,} in the first iteration, {every:,} in all, at most {judging:,} more for judging"
    files = ", ".join(f"{name} {gib(size)}" for name, size in memory.checkpoint.items())
    keep = forecast.recipe.checkpoint.keep
    yield f"disk: {gib(forecast.disk)} GiB for the last {keep} checkpoints, the best and one being written ({files})"
    if times:
        phases = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.phases.items())
        end = f"{times.whole / 3600:.2g} h to the end, with judging"
        yield f"time: {times.iteration:.3g} s an iteration ({phases}), {end}"


def lever_lines(levers: Iterable[Lever], phase: str = "") -> Iterator[str]:
    """Yield each lever as ``--set`` items, and the peak with it and all before it: of a run's ``phase``, or of all."""
    for lever in levers:
        forecast = lever.forecast
        peaks = forecast.memory.peaks
        name = largest_part(forecast, phase) if phase else max(peaks, key=lambda part: peaks[part])
        peak = peaks[name]
        yield f"  {lever.line:40}  {gib(peak + overhead(peak, forecast.device))} GiB, in {name}"
