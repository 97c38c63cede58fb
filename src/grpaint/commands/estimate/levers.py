"""Search for settings that lower the memory peaks: levers, cheapest first, each tried with a new forecast."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grpaint.commands.estimate.deadline import TimeOver
from grpaint.commands.estimate.forecast import Forecast, overhead
from grpaint.commands.estimate.rehearsal import TraceCache
from grpaint.core.errors import ConfigError
from grpaint.recipe.build import Plain
from grpaint.recipe.config import SftRecipe, TrainRecipe, override

REAL = 0.98  # a lever that leaves a larger share of the peak is not worth its price
Sets = tuple[str, ...]
Predict = Callable[[Plain, TraceCache], Forecast]
PARTS = {  # a run's phase, and the phases of a forecast that it consists of
    "rollout": ("encode", "rollout"),
    "reward": ("decode", "reward"),
    "update": ("encode", "update"),
    "evaluate": ("encode", "evaluate", "decode"),
}


@dataclass(frozen=True)
class Lever:
    """``--set`` items that lower a peak, and the recipe's forecast with them and all levers before them."""

    sets: Sets
    forecast: Forecast

    @property
    def line(self) -> str:
        """The items as command-line arguments."""
        return " ".join(f"--set {item}" for item in self.sets)


def _halves(key: str, start: int, least: int = 1) -> list[Sets]:
    """Settings of half of ``start``, a quarter and so on, down to ``least``."""
    values: list[Sets] = []
    while start // 2 >= least:
        start //= 2
        values.append((f"{key}={start}",))
    return values


def available_levers(now: Forecast, ranks: int = 1) -> Iterator[list[Sets]]:
    """Levers that the recipe does not use yet, cheapest first; each a list of settings from weakest to strongest.

    ``ranks``: of a machine, which may divide the network.

    The first ones only split work into smaller parts; then come those that compute more, those that round or train
    differently, and last those that change what the run produces.
    """
    recipe, train = now.recipe, now.recipe.train
    model: Any = recipe.model
    images = recipe.train.batch if isinstance(recipe, SftRecipe) else recipe.train.prompts * recipe.train.group_size
    most = max(images, recipe.evaluate.prompts)
    if hasattr(model, "vae_batch"):
        yield _halves("model.vae_batch", min(model.vae_batch, most))
        yield [] if model.vae_tiling else [("model.vae_tiling=true",)]
    if getattr(model, "embeddings", "") == "encode":
        yield [("model.embeddings=cache",)]
    yield _halves("model.batch", min(getattr(model, "batch", 1), most))
    if getattr(train, "retain", False):
        yield [("train.retain=false",)]
    minibatch = getattr(recipe.objective, "minibatch", None)
    if minibatch is not None:
        yield _halves("objective.minibatch", min(minibatch or images, images))
    if isinstance(recipe, TrainRecipe) and recipe.anchor:
        rows = recipe.anchor.loss.minibatch or recipe.anchor.batch
        yield _halves("anchor.loss.minibatch", rows)
    if getattr(model, "checkpointing", True) is False:
        yield [("model.checkpointing=true",)]
    if ranks > 1 and not (recipe.processes and recipe.processes.shard != "none"):
        yield [(f"processes.shard={'base' if getattr(model, 'lora', None) else 'all'}",)]
    if now.precision == "fp32":
        yield [("precision=bf16",)]
    if getattr(model, "lora", True) is None:
        yield [("model.lora.rank=16",)]
    yield _halves("evaluate.prompts", recipe.evaluate.prompts)
    if isinstance(recipe, SftRecipe):
        yield _halves("train.batch", recipe.train.batch)
    else:
        yield _halves("train.prompts", recipe.train.prompts)
    yield _smaller(model)


def _smaller(model: object) -> list[Sets]:
    """Sides of three quarters, a half and a quarter of the image's, in multiples of 64."""
    sides = getattr(model, "pixels", None) or (0, 0)
    smaller = [tuple(int(side * share) // 64 * 64 for side in sides) for share in (0.75, 0.5, 0.25)]
    return [(f"model.height={high}", f"model.width={width}") for high, width in smaller if high and width]


class _Search:
    """The recipe's table and forecast with the levers accepted so far."""

    def __init__(self, table: Plain, now: Forecast, predict: Predict) -> None:
        self.table, self.now, self._predict = table, now, predict
        self.cache = TraceCache()

    def attempt(self, sets: Sequence[str]) -> Forecast | None:
        """The forecast with further settings; None if the recipe does not allow them."""
        try:
            return self._predict(override(self.table, sets), self.cache)
        except TimeOver:
            raise
        except ConfigError:
            return None

    def lowers(self, candidate: Forecast, phases: Sequence[str]) -> bool:
        """Whether a forecast lowers one of ``phases`` by a worthwhile amount without raising the highest peak."""
        old, new = self.now.memory.peaks, candidate.memory.peaks
        return candidate.peak <= self.now.peak and any(new.get(phase, 0) < REAL * old[phase] for phase in phases)

    def accept(self, sets: Sets, forecast_with: Forecast) -> Lever:
        """Continue the search with these settings."""
        self.table, self.now = override(self.table, sets), forecast_with
        return Lever(sets, forecast_with)


def find_levers(
    table: Plain, now: Forecast, predict: Predict, *, limit: int = 0, phase: str = "", ranks: int = 1
) -> Iterator[Lever]:
    """Yield levers that lower peaks which are too large, each on top of those before it.

    ``predict`` returns the forecast of other settings than ``table``; ``ranks``: how many share a machine.

    With ``limit`` in bytes: until every phase fits, each lever at the weakest setting that is enough. With ``phase``,
    which ran out of memory by an unknown amount: every lever at its weakest setting that helps.
    """
    search = _Search(table, now, predict)
    for options in list(available_levers(now, ranks)):
        large = (
            [largest_part(search.now, phase)]
            if phase
            else [n for n, v in search.now.memory.peaks.items() if _exceeds(search.now, v, limit)]
        )
        if not large:
            return
        best = _weakest(search, options, large, limit) if limit else _first(search, options, large)
        if best:
            yield search.accept(*best)


def largest_part(now: Forecast, phase: str) -> str:
    """The forecast's phase with the highest peak of those that a run's phase consists of."""
    parts = [part for part in PARTS.get(phase, (phase,)) if part in now.memory.peaks]
    return max(parts, key=lambda part: now.memory.peaks[part])


def _exceeds(now: Forecast, peak: int, limit: int) -> bool:
    return peak + overhead(peak, now.device) > limit


def _first(search: _Search, options: Sequence[Sets], large: Sequence[str]) -> tuple[Sets, Forecast] | None:
    """The weakest setting that lowers one of the phases; None if none does."""
    for sets in options:
        candidate = search.attempt(sets)
        if candidate and search.lowers(candidate, large):
            return sets, candidate
    return None


def _weakest(
    search: _Search, options: Sequence[Sets], large: Sequence[str], limit: int
) -> tuple[Sets, Forecast] | None:
    """The weakest setting that makes the affected phases fit, or the strongest if none does; None if none helps."""
    strongest = search.attempt(options[-1]) if options else None
    if not strongest or not search.lowers(strongest, large):
        return None
    best = options[-1], strongest
    affected = [n for n in large if strongest.memory.peaks.get(n, 0) < REAL * search.now.memory.peaks[n]]
    low, high = 0, len(options) - 1  # the option at high is enough, or the strongest
    while low < high:
        middle = (low + high) // 2
        candidate = search.attempt(options[middle])
        if candidate and not any(_exceeds(candidate, candidate.memory.peaks[name], limit) for name in affected):
            best, high = (options[middle], candidate), middle
        else:
            low = middle + 1
    return best
