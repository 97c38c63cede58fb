"""What to pull where memory is short: settings in the order of what they cost, each tried by planning again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grpaint.commands.estimate.forecast import Forecast, forecast, overhead
from grpaint.commands.estimate.rehearsal import Known
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Device
from grpaint.recipe.build import Plain
from grpaint.recipe.config import SftRecipe, TrainRecipe, override

REAL = 0.98  # a lever that leaves more than this of the peak is not worth its price
Sets = tuple[str, ...]
PARTS = {  # a run's phase, and what of it is planned for on its own
    "rollout": ("encode", "rollout"),
    "reward": ("decode", "reward"),
    "update": ("encode", "update"),
    "evaluate": ("encode", "evaluate", "decode"),
}


@dataclass(frozen=True)
class Pull:
    """A lever: the ``--set`` items, and the recipe's forecast with it and all before it."""

    sets: Sets
    forecast: Forecast

    @property
    def line(self) -> str:
        """To paste."""
        return " ".join(f"--set {item}" for item in self.sets)


def _halves(key: str, start: int, least: int = 1) -> list[Sets]:
    values: list[Sets] = []
    while start // 2 >= least:
        start //= 2
        values.append((f"{key}={start}",))
    return values


def choices(now: Forecast) -> Iterator[list[Sets]]:
    """Levers that are not pulled, cheapest first; each a list of settings, from the mildest to the strongest.

    The first only split work into smaller parts; then come those that compute more, those that round or learn
    otherwise, and last those that change what is asked for.
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
    """Images of three quarters, half and a quarter of each side."""
    sides = getattr(model, "pixels", None) or (0, 0)
    smaller = [tuple(int(side * share) // 64 * 64 for side in sides) for share in (0.75, 0.5, 0.25)]
    return [(f"model.height={high}", f"model.width={width}") for high, width in smaller if high and width]


class _Search:
    """Levers pulled so far, and what is still too large."""

    def __init__(self, table: Plain, stage: str, device: Device | None, now: Forecast) -> None:
        self.table, self.stage, self.device, self.now = table, stage, device, now
        self.known = Known()

    def attempt(self, sets: Sequence[str]) -> Forecast | None:
        """The forecast with further settings; None where the recipe does not allow them."""
        try:
            return forecast(override(self.table, sets), self.stage, self.device, self.known)
        except ConfigError:
            return None

    def lowers(self, tried: Forecast, phases: Sequence[str]) -> bool:
        """Whether it takes something off a phase that is too large, and the highest peak is not raised for it."""
        old, new = self.now.memory.peaks, tried.memory.peaks
        return tried.peak <= self.now.peak and any(new.get(phase, 0) < REAL * old[phase] for phase in phases)

    def accept(self, sets: Sets, found: Forecast) -> Pull:
        """Go on from here."""
        self.table, self.now = override(self.table, sets), found
        return Pull(sets, found)


def levers(
    table: Plain, stage: str, now: Forecast, *, limit: int = 0, phase: str = "", device: Device | None = None
) -> Iterator[Pull]:
    """Levers that lower what is too large, one after another.

    With ``limit``, bytes: until every phase fits, each pulled as little as that allows. With ``phase``, which ran out
    of memory nobody knows how far: each once, by half where it is a number.
    """
    search = _Search(table, stage, device, now)
    for options in list(choices(now)):
        large = (
            [largest(search.now, phase)]
            if phase
            else [n for n, v in search.now.memory.peaks.items() if _exceeds(search.now, v, limit)]
        )
        if not large:
            return
        pulled = _mildest(search, options, large, limit) if limit else _first(search, options, large)
        if pulled:
            yield search.accept(*pulled)


def largest(now: Forecast, phase: str) -> str:
    """The part of a run's phase with the highest peak."""
    parts = [part for part in PARTS.get(phase, (phase,)) if part in now.memory.peaks]
    return max(parts, key=lambda part: now.memory.peaks[part])


def _exceeds(now: Forecast, peak: int, limit: int) -> bool:
    return peak + overhead(peak, now.device) > limit


def _first(search: _Search, options: Sequence[Sets], large: Sequence[str]) -> tuple[Sets, Forecast] | None:
    for sets in options:
        tried = search.attempt(sets)
        if tried and search.lowers(tried, large):
            return sets, tried
    return None


def _mildest(
    search: _Search, options: Sequence[Sets], large: Sequence[str], limit: int
) -> tuple[Sets, Forecast] | None:
    """The mildest choice after which what it concerns fits; the strongest where none is enough."""
    strongest = search.attempt(options[-1]) if options else None
    if not strongest or not search.lowers(strongest, large):
        return None
    best = options[-1], strongest
    concerned = [n for n in large if strongest.memory.peaks.get(n, 0) < REAL * search.now.memory.peaks[n]]
    low, high = 0, len(options) - 1  # what lies at high is enough, or all there is
    while low < high:
        middle = (low + high) // 2
        tried = search.attempt(options[middle])
        if tried and not any(_exceeds(tried, tried.memory.peaks[name], limit) for name in concerned):
            best, high = (options[middle], tried), middle
        else:
            low = middle + 1
    return best
