"""Do two processes do the work of two? One plan on several processes against independent runs of a share each.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/processes.py [RECIPE ...] [--processes 2] [--rounds 5] [--iterations 12]
        [--evaluation sdxl=0.04 ...] [--set key=value ...] [--quick]

In each round three arrangements take turns, all by ``grpaint train``, with one thread a process: **together**, one plan
on ``--processes`` processes; **apart**, as many runs of one process side by side, each with its share of the prompts,
which is what the machine can do; **alone**, the plan on one process. Seconds are those between two lines of
metrics.jsonl, from the second on, while all processes of the arrangement train: no start, no evaluation. Exchanges are
timed by a wrapper around them. Ranks read one clock, so the time until the last of them has come is waiting, and the
rest is the exchange. On GPUs the wrapper waits for the device first and last, and every process has one of its own.
``--quick`` is one round of a few images, to see that it works.

The prediction is arithmetic: a ring all-reduce of the gradients after the last backward pass, one link a node, and a
ring for each small exchange, whose number and bytes are those of the last recipe measured. Parameters are counted on
the published configurations without weights; the seconds of a model evaluation, a forward pass of one image, are an
assumption, which ``--evaluation`` replaces. Waiting is left out.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from grpaint.backends.synthetic.pipelines import save_settings
from grpaint.recipe.config import open_recipe, resolve
from grpaint.recipe.costs import costs, gradient_bytes

METER = Path(__file__).with_name("exchange_meter.py")
SMALL_EVALUATION = ("evaluate.prompts=2", "evaluate.probe=2", "evaluate.steps=2", "evaluate.guided=[]")
RARELY = ("evaluate.pictures=0", "evaluate.every=1000000", "checkpoint.every=1000000", "threads=1")
QUICK = ("train.prompts=4", "train.group_size=6", "anchor.batch=4")
RANKS = (1, 2, 4, 8, 16, 32, 64)
# name: the recipe, what of its model is taken away, and the seconds of one evaluation: a forward pass of one image
MODELS = {
    "sdxl": ("sdxl/flow-grpo", (), 0.05),
    "sd3.5-medium": ("sd3.5-medium/flow-grpo", ("lora",), 0.025),
}
NODE, INSIDE, BETWEEN, LATENCY = 8, 2400, (25, 400), 50e-6  # ranks a node, Gbit/s, Gbit/s, seconds of a message


T = TypeVar("T", "Cost", "Exchanged")


@dataclass(frozen=True)
class Timed:
    """What one process wrote: when iterations ended, and the spans of their exchanges as (start, end, bytes).

    ``cpu``: its processor seconds in an iteration. ``evaluations``: its run's model evaluations in an iteration.
    """

    ends: list[float]
    spans: list[list[tuple[float, float, int]]]
    cpu: float
    evaluations: float


@dataclass(frozen=True)
class Exchanged:
    """Shares of an iteration, and of one rank the bytes of the largest exchange, of all others, and their number."""

    waiting: float
    exchanging: float
    largest: float
    others: float
    count: float


@dataclass(frozen=True)
class Cost:
    """Of an iteration: seconds, processor seconds and model evaluations of all processes."""

    seconds: float
    cpu: float
    evaluations: float


def train(folder: Path, recipe: str, sets: list[str], *words: str, device: int | None = None) -> subprocess.Popen:
    """Start ``grpaint train`` in a folder of its own."""
    folder.mkdir()
    flags = [word for item in sets for word in ("--set", item)]
    paths = [str(folder.parent / "meter"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    if device is not None and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device]
    command = [sys.executable, "-m", "grpaint", "train", recipe, "--name", "run", *words, *flags]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=(folder / "errors").open("w")
    )


def finish(runs: dict[Path, subprocess.Popen]) -> list[Timed]:
    """Wait for runs, and read what their processes wrote."""
    for folder, run in runs.items():
        if run.wait():
            sys.exit((folder / "errors").read_text())
    times = []
    for folder in runs:
        last = json.loads((folder / "runs/run/metrics.jsonl").read_text().splitlines()[-1])
        for file in sorted(folder.glob("times-*.jsonl")):
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            ends, spans, cpu = ([line[name] for line in lines] for name in ("end", "spans", "cpu"))
            each = last["cost/model_evaluations"] / last["iteration"]
            times.append(Timed(ends, spans, (cpu[-1] - cpu[0]) / (len(cpu) - 1), each))
    return times


def seconds(times: list[Timed]) -> float:
    """Return the median seconds of an iteration, of those during which all processes trained."""
    first, last = max(one.ends[0] for one in times), min(one.ends[-1] for one in times)
    pairs = [pair for one in times for pair in itertools.pairwise(one.ends)]
    inside = [end - start for start, end in pairs if start >= first and end <= last]
    return statistics.median(inside or [end - start for start, end in pairs])


def exchanged(ranks: list[Timed]) -> Exchanged:
    """Return what the exchanges of a run took, without its first iteration."""
    waiting = exchanging = 0.0
    sizes = [[size for _, _, size in spans] for spans in ranks[0].spans[1:]]
    for rows in zip(*(itertools.chain.from_iterable(one.spans[1:]) for one in ranks), strict=True):
        complete = max(start for start, _, _ in rows)
        waiting += sum(complete - start for start, _, _ in rows)
        exchanging += sum(end - complete for _, end, _ in rows)
    whole = sum(one.ends[-1] - one.ends[0] for one in ranks)
    largest = statistics.mean(max(one) for one in sizes)
    others = statistics.mean(sum(one) for one in sizes) - largest
    return Exchanged(waiting / whole, exchanging / whole, largest, others, statistics.mean(map(len, sizes)))


def shares(recipe: str, sets: list[str], processes: int) -> list[list[str]]:
    """Return for each independent run what to set: its part of the prompts and of the anchor's batch."""
    opened, _ = open_recipe(recipe, "train", sets)
    sizes = {"train.prompts": opened.train.prompts} | ({"anchor.batch": opened.anchor.batch} if opened.anchor else {})
    for key, count in sizes.items():
        if count % processes:
            sys.exit(f"{key} = {count}: not a multiple of {processes}, so independent runs would differ.")
    parts = [f"{key}={count // processes}" for key, count in sizes.items()]
    return [[*parts, f"train.seed={number}"] for number in range(processes)]


def arrange(kind: str, recipe: str, sets: list[str], processes: int) -> list[Timed]:
    """Train in one arrangement."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "meter").mkdir()
        shutil.copy(METER, place / "meter/sitecustomize.py")  # Python imports it in every process of a run
        if kind == "together":
            runs = {place / kind: train(place / kind, recipe, sets, "--processes", str(processes))}
        elif kind == "apart":
            parts = enumerate(shares(recipe, sets, processes))
            runs = {place / str(n): train(place / str(n), recipe, sets + part, device=n) for n, part in parts}
        else:
            runs = {place / kind: train(place / kind, recipe, sets)}
        return finish(runs)


def measure(recipe: str, args: argparse.Namespace) -> Exchanged:
    """Run and print the rounds of a recipe."""
    sets = [*SMALL_EVALUATION, *RARELY, f"train.iterations={args.iterations}", "train.evaluations=0", *args.sets]
    print(f"\n{recipe}: {args.processes} processes, {args.iterations} iterations a run", flush=True)
    rounds: dict[str, list[Cost]] = {"together": [], "apart": [], "alone": []}
    exchanges = []
    for number in range(args.rounds):
        for kind in list(rounds)[:: -1 if number % 2 else 1]:
            times = arrange(kind, recipe, sets, args.processes)
            work = sum(one.evaluations for one in times) / (len(times) if kind == "together" else 1)
            rounds[kind].append(Cost(seconds(times), sum(one.cpu for one in times), work))
            exchanges += [exchanged(times)] if kind == "together" else []
        latest = ", ".join(f"{kind} {costs[-1].seconds:.3f} s" for kind, costs in rounds.items())
        print(f"  round {number + 1}: {latest}; load {os.getloadavg()[0]:.1f}", flush=True)
    return report(rounds, exchanges)


def report(rounds: dict[str, list[Cost]], exchanges: list[Exchanged]) -> Exchanged:
    """Print a recipe's medians and ratios; return the medians of its exchanges."""
    middle = {kind: medians(costs) for kind, costs in rounds.items()}
    for kind, cost in middle.items():
        print(
            f"  {kind:9}{cost.seconds:7.3f} s an iteration, {cost.cpu:.3f} processor seconds in all, "
            f"{cost.evaluations:.0f} model evaluations"
        )
    for kind, name in (("apart", "of the machine's own ceiling, at least 0.95"), ("alone", "speed-up")):
        ratio = middle[kind].seconds / middle["together"].seconds
        each = [a.seconds / b.seconds for a, b in zip(rounds[kind], rounds["together"], strict=True)]
        print(f"  {kind} / together {ratio:.3f} ({name}; rounds {min(each):.3f} to {max(each):.3f})")
    share = medians(exchanges)
    print(
        f"  in exchanges {share.waiting + share.exchanging:.1%} of an iteration: {share.waiting:.1%} waiting, "
        f"{share.exchanging:.1%} exchanging;\n    {share.count:.0f} exchanges; a rank gives "
        f"{share.largest / 1e6:.2f} MB in the largest and {share.others / 1e3:.1f} kB in all others"
    )
    return share


def medians(rows: list[T]) -> T:
    """Return the median of each field."""
    return type(rows[0])(*(statistics.median(vars(row)[name] for row in rows) for name in vars(rows[0])))


def ring(size: float, ranks: int, between: float) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes: a link of the ring carries 2 (n - 1) / n of it."""
    rate = (between if ranks > NODE else INSIDE) * 1e9 / 8
    return 2 * (ranks - 1) * (size / ranks / rate + LATENCY)


def predict(assumed: dict[str, float], exchanges: Exchanged) -> None:
    """Print the predicted efficiency of weak scaling: every rank has one prompt, and the same work."""
    print(
        f"\nPREDICTED, NOT MEASURED: weak scaling, a prompt a rank; the time on one rank over the time on n.\n"
        f"  Assumed: {NODE} ranks a node, {INSIDE} Gbit/s inside it, one link of 25 or 400 Gbit/s a node, "
        f"{1e6 * LATENCY:.0f} us a message, no overlap with the backward pass, and no waiting.\n"
        f"  Measured above: {exchanges.count:.0f} exchanges an iteration, of {exchanges.others / 1e3:.1f} kB a rank "
        f"without the gradients. Waiting, {exchanges.waiting:.1%} above, comes off."
    )
    for name, (recipe_name, without, default) in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            base = save_settings(name, Path(place))
            prompts = base / "prompts.txt"
            prompts.write_text("a\nb\n")
            sets = [f"model.base={base}", f"data.train={prompts}", "train.prompts=1", "precision=bf16"]
            _, settings = open_recipe(recipe_name, "train", sets)
            for key in without:
                del settings["model"][key]
            recipe, _ = resolve(settings, "train")
            size, count = gradient_bytes(recipe), costs(recipe)["evaluations_iteration"]
        assert size, name
        updates, evaluation = recipe.train.updates, assumed.get(name, default)
        print(
            f"  {name}, {'full' if without else 'LoRA'} ({recipe_name}): {size / 4e6:.0f} M trainable numbers, "
            f"{size / 1e6:.0f} MB summed in each of {updates} updates;\n    {count} model evaluations an iteration and "
            f"rank, of {evaluation:g} s ({'given' if name in assumed else 'assumed'}): {count * evaluation:.0f} s"
        )
        print("    " + "ranks".ljust(12) + "".join(f"{ranks:8}" for ranks in RANKS))
        for between in BETWEEN:
            cells = []
            for ranks in RANKS:
                small = (ranks - 1) * (exchanges.count * LATENCY + exchanges.others * 8e-9 / between)
                cells.append(count * evaluation / (count * evaluation + updates * ring(size, ranks, between) + small))
            print("    " + f"{between} Gbit/s".ljust(12) + "".join(f"{cell:8.3f}" for cell in cells))


def machine() -> str:
    """Return the processor or the GPUs, torch, the date and the command."""
    where = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    if not where:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        where = f"{len(os.sched_getaffinity(0))} cores, {(names or [platform.processor()])[0].rpartition(': ')[2]}"
    today = datetime.date.today().isoformat()
    return f"{where}; torch {torch.__version__}; {today}; python {' '.join(sys.argv)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["awm", "mix-grpo"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--evaluation", action="append", default=[], metavar="MODEL=SECONDS")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    args = parser.parse_args()
    if args.quick:
        args.recipes, args.rounds, args.iterations, args.sets = ["awm"], 1, 3, [*QUICK, *args.sets]
    if torch.cuda.is_available() and args.processes > torch.cuda.device_count():
        sys.exit(f"--processes {args.processes}: every process needs a GPU of its own.")
    print(machine())
    exchanges = [measure(recipe, args) for recipe in args.recipes]
    predict({name: float(text) for name, _, text in (item.partition("=") for item in args.evaluation)}, exchanges[-1])


if __name__ == "__main__":
    main()
