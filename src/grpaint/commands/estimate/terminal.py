"""A forecast in lines for the terminal."""

from collections.abc import Iterable, Iterator

from grpaint.commands.estimate.calibration import Times
from grpaint.commands.estimate.forecast import CONTEXT, GIB, SLACK, Forecast, overhead
from grpaint.commands.estimate.levers import Pull, largest


def gib(amount: float) -> str:
    """A number of bytes in GiB."""
    return f"{amount / GIB:.2f}"


def lines(said: Forecast, times: Times | None = None) -> Iterator[str]:
    """What a recipe needs."""
    memory = said.memory
    yield f"{memory.parameters:,} parameters, {memory.trainable:,} of them trained; {said.device}, {said.precision}"
    yield "predicted peak memory, GiB:"
    yield f"  {'phase':10}{'peak':>8} ={'weights':>9}{'copies':>9}{'optimizer':>11}{'the rest':>10}"
    for name, peak in memory.peaks.items():
        state = 0 if name == "load" else memory.optimizer
        rest = peak - memory.weights - memory.copies - state
        parts = f"{gib(memory.weights):>9}{gib(memory.copies):>9}{gib(state):>11}{gib(rest):>10}"
        yield f"  {name:10}{gib(peak):>8} ={parts}"
    most = max(memory.peaks.values())
    if said.device == "cuda":
        assumed = f"{gib(CONTEXT)} for the context and {SLACK:.0%} for workspaces and gaps, both assumed"
        yield f"  on a GPU {gib(most)} + {gib(overhead(most, said.device))} = {gib(said.peak)}: {assumed}"
    else:
        yield "  without the process itself, and what kernels take for a moment"
    yield "  without what rewards need for themselves: they read values, which a plan has none of"
    each, every, judging = said.evaluations
    yield f"model evaluations: {each:,} an iteration, {every:,} in all, at most {judging:,} more for judging"
    files = ", ".join(f"{name} {gib(size)}" for name, size in memory.checkpoint.items())
    kept = said.recipe.checkpoint.keep
    yield f"disk: {gib(said.disk)} GiB for the last {kept} checkpoints, the best and one being written ({files})"
    if times:
        phases = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.phases.items())
        end = f"{times.whole / 3600:.2g} h to the end, with judging"
        yield f"time: {times.iteration:.3g} s an iteration ({phases}), {end}"


def pulled(pulls: Iterable[Pull], phase: str = "") -> Iterator[str]:
    """Levers to paste, and the peak after each and all before it: of a run's ``phase``, or of all."""
    for pull in pulls:
        found = pull.forecast
        name = largest(found, phase) if phase else max(found.memory.peaks, key=lambda key: found.memory.peaks[key])
        peak = found.memory.peaks[name]
        yield f"  {pull.line:40}  {gib(peak + overhead(peak, found.device))} GiB, in {name}"
