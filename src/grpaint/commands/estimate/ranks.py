"""The forecast of a rank: its share of an iteration's rows, and its memory by what the ranks of a machine divide."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from grpaint.commands.estimate.forecast import Forecast, forecast, overhead
from grpaint.commands.estimate.rehearsal import Memory, TraceCache
from grpaint.commands.estimate.terminal import gib
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Device
from grpaint.recipe.build import Plain
from grpaint.recipe.config import Recipe, SftRecipe, override, resolve
from grpaint.recipe.settings import Shard
from grpaint.run.shares import divide_rows

COMPUTING = ("rollout", "update", "evaluate")  # phases in which blocks are gathered
# Blocks that are whole at once, besides what no block has: a gathered one, the buffer that it is copied from, and that
# of the exchange or the next block; of a trained one also its gradient and the buffer in which gradients are summed.
GATHERED, GRADIENTS = 3, 2


@dataclass(frozen=True)
class RankForecast:
    """What a rank needs if the ranks of its machine divide ``shard``.

    Bytes: ``weights`` that it holds, ``peaks`` by phase, and what it receives from others in a ``call`` of the network.
    """

    shard: Shard
    weights: int
    peaks: dict[str, int]
    call: int

    @property
    def phase(self) -> str:
        """The phase of the highest peak."""
        return max(self.peaks, key=lambda name: self.peaks[name])


@dataclass(frozen=True)
class RanksForecast:
    """What ``processes`` on ``nodes`` machines need, in each way to divide the model that its recipe allows."""

    processes: int
    nodes: int
    whole: Forecast
    ways: list[RankForecast]

    def peak(self, way: RankForecast) -> int:
        """The bytes that a rank needs, with a GPU's overhead."""
        most = max(way.peaks.values())
        return most + overhead(most, self.whole.device)

    def recommended(self, limit: int) -> Shard | None:
        """The first way whose ranks need at most ``limit`` bytes, since each is slower than the one before it."""
        return next((way.shard for way in self.ways if self.peak(way) <= limit), None)

    def rank(self, recipe: Recipe) -> Forecast:
        """Return the forecast of a rank that divides the network as ``recipe`` says, which is the undivided recipe."""
        shard = recipe.processes.shard if recipe.processes else "none"
        way = next((way for way in self.ways if way.shard == shard), self.ways[-1])  # an adapter is whole in "all" too
        memory = replace(self.whole.memory, peaks=way.peaks, weights=way.weights)
        return replace(self.whole, recipe=recipe, memory=memory)

    @property
    def rewards(self) -> dict[str, str]:
        """Where each reward is: on every rank, or on the first one of each machine."""
        items = {} if isinstance(self.whole.recipe, SftRecipe) else self.whole.recipe.rewards
        places = {"each": "every rank", "node": "the first rank of each machine"}
        return {name: places[item.place or "each"] for name, item in items.items()}

    def plain(self, limit: int) -> dict[str, Any]:
        """The forecast as ``grpaint plan --json`` prints it."""
        ways = {way.shard: vars(way) | {"peak": self.peak(way)} for way in self.ways}
        facts = {"count": self.processes, "nodes": self.nodes, "gradient_bytes": 4 * self.whole.memory.trainable}
        return facts | {"shard": ways, "recommended": self.recommended(limit), "rewards": self.rewards}

    def lines(self, limit: int) -> Iterator[str]:
        """Yield the forecast as lines for the terminal."""
        machines = "one machine" if self.nodes == 1 else f"{self.nodes} machines"
        yield f"{self.processes} processes on {machines}; the rank with the largest share of the rows, GiB:"
        yield f"  {'shard':10}{'weights':>9}{'peak':>9}  {'in':10}{'received in a call':>19}"
        for way in self.ways:
            numbers = f"{gib(way.weights):>9}{gib(self.peak(way)):>9}  {way.phase:10}{gib(way.call):>19}"
            yield f"  {way.shard:10}{numbers}"
        yield f"  {gib(4 * self.whole.memory.trainable)} GiB of gradients are summed in an update"
        for name, place in self.rewards.items():
            yield f"  reward {name}: on {place}"
        best = self.recommended(limit)
        if not limit:
            return
        if best is None:
            yield "  none of them fits: more processes on a machine, or a setting below"
        else:
            yield f'recommended: processes.shard = "{best}"'


def forecast_ranks(
    table: Plain, stage: str, device: Device | None, processes: int, nodes: int, cache: TraceCache | None = None
) -> RanksForecast:
    """Predict what a rank needs, of ``processes`` on ``nodes`` machines.

    Raises:
        ConfigError: so many processes cannot divide the recipe, or not equally among the machines.
    """
    if processes % nodes:
        raise ConfigError(f"--processes {processes} --nodes {nodes}: start equally many on every machine.")
    recipe, _ = resolve(table, stage)
    divide_rows(recipe, processes)
    share = forecast(override(table, _share(recipe, processes)), stage, device, cache)
    ways = [divided(share.memory, shard, processes // nodes) for shard in _shards(recipe, processes // nodes)]
    return RanksForecast(processes, nodes, share, ways)


def _share(recipe: Recipe, processes: int) -> list[str]:
    """Return the settings of a recipe whose rows are those of the largest share."""

    def part(count: int) -> int:
        return -(-count // processes)

    sets = [f"evaluate.prompts={part(recipe.evaluate.prompts)}"]
    if isinstance(recipe, SftRecipe):
        return [*sets, f"train.batch={part(recipe.train.batch)}"]
    train, prompts = recipe.train, part(recipe.train.prompts)
    sets += [f"train.prompts={prompts}", f"train.parts={min(train.parts, prompts)}"]
    sets += [f"anchor.batch={part(recipe.anchor.batch)}"] if recipe.anchor else []
    if processes > train.prompts and not recipe.plan.prune:
        sets += [f"train.group_size={max(2, part(train.prompts * train.group_size))}"]
    return sets


def _shards(recipe: Recipe, ranks: int) -> Iterator[Shard]:
    """Yield the ways to divide the model that its settings allow, the fastest first."""
    yield "none"
    check = getattr(recipe.model, "check_shard", None)
    for shard in ("base", "all") if check and ranks > 1 else ():
        try:
            check(shard)  # type: ignore[misc]  # reason: it is not None here
        except ValueError:
            continue
        yield shard
        return  # an adapter is whole in both


def divided(memory: Memory, shard: Shard, ranks: int) -> RankForecast:
    """Return the memory of one of ``ranks`` that divide a network, from that of a process which has all of it."""
    away = 0.0 if shard == "none" else 1 - 1 / ranks
    trained = 4 * memory.trainable if shard == "all" else 0
    frozen = memory.network - 4 * memory.trainable  # of the network alone
    parted, peaks = frozen + trained, {}
    for name, peak in memory.peaks.items():
        saved = parted + (memory.copies if trained else 0)
        saved += memory.optimizer if trained and name != "load" else 0
        gathered = 0
        if shard != "none" and name in COMPUTING:
            blocks = GATHERED + (GRADIENTS if trained and name == "update" else 0)
            gathered = blocks * memory.block + memory.rest
        saved += trained if name == "update" else 0  # the gradient
        peaks[name] = int(peak - away * saved + gathered)
    return RankForecast(shard, int(memory.weights - away * parted), peaks, int(away * parted))
