"""Commands that train, judge and compare."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, RecipeName, Resume, RunName, Runs, Sets

if TYPE_CHECKING:
    from grpaint.run.folder import RunFolder

RUNS = Path("runs")


@app.command()
def train(
    recipe: RecipeName = None, sets: Sets = None, name: RunName = None, runs: Runs = RUNS, resume: Resume = False
) -> None:
    """Post-train with reinforcement learning; without RECIPE the built-in model with the default method."""
    _run("train", recipe, sets or [], runs, name, resume=resume)


@app.command()
def sft(
    recipe: RecipeName = None, sets: Sets = None, name: RunName = None, runs: Runs = RUNS, resume: Resume = False
) -> None:
    """Train on captioned images (the supervised stage)."""
    _run("sft", recipe, sets or [], runs, name, resume=resume)


def _run(stage: str, recipe: str | None, sets: list[str], runs: Path, name: str | None, *, resume: bool) -> None:
    from rich.console import Console

    from grpaint.core.errors import CheckpointError, ConfigError, MemoryExhausted
    from grpaint.loops import start
    from grpaint.recipe.config import DEFAULT, keep_pins, locate, open_recipe, override, pinned, read_toml, resolve
    from grpaint.run.folder import RunFolder
    from grpaint.run.progress import Progress
    from grpaint.run.saved import check_resume

    console = Console()
    name = _short(recipe or DEFAULT[stage]) if name is None else name
    if not name or Path(name).name != name or name.startswith("."):
        raise ConfigError(
            f'--name "{name}": the name of a folder under {runs}, without / and not beginning with a dot.'
        )
    path = runs / name
    if resume:
        folder = RunFolder.open(path)
        kept, before = folder.settings(), folder.facts().get("sets", [])
        given = [item for item in before if item not in sets] + sets
        again = override(kept, sets) if recipe is None else override(read_toml(locate(recipe)), given)
        loaded, settings = resolve(keep_pins(again, kept), stage)
        kept = resolve(kept, stage)[1]  # with the defaults of settings that have come since
        check_resume(folder, kept, settings)
        facts = folder.facts()
        if settings == kept and facts.get("status") == "finished":
            limits = "train.iterations" + (" and train.evaluations" if loaded.train.evaluations else "")
            console.print(f"{path} has finished its {facts['iterations']} iterations; with larger {limits} it goes on.")
            return
        folder.keep_settings(settings)
        folder.status(sets=given)
    else:
        loaded, settings = pinned(*open_recipe(recipe, stage, sets))
        folder = RunFolder.create(path, settings, sets)
    try:
        with Progress(console, loaded.train) as progress:
            start(loaded, folder, progress.log, [progress.watch])
    except (ConfigError, CheckpointError):
        if not resume and not folder.lines("evaluations.jsonl"):
            folder.discard()
        raise
    except MemoryExhausted as error:
        try:
            _advise(settings, stage, error.phase)
        except Exception as reason:  # noqa: BLE001 - reason: advice that fails must not hide what happened
            typer.echo(f"no plan can be made of it: {reason}")
        raise
    _show_end(console, folder)


def _advise(settings: dict[str, Any], stage: str, phase: str) -> None:
    """Print the settings that would have lowered the peak of a phase."""
    from grpaint.commands.estimate import forecast, levers, page

    said = forecast(settings, stage)
    typer.echo(
        f"Each of these lowers the peak in {phase}, the cheapest first; the predicted peak with those before it:"
    )
    for line in page.pulled(levers(settings, stage, said, phase=phase), phase):
        typer.echo(line)


def _short(recipe: str) -> str:
    return Path(recipe).stem


def _show_end(console: Any, folder: "RunFolder") -> None:
    from grpaint.judge import paired_difference
    from grpaint.measures.score import score_name
    from grpaint.report.terminal import table

    lines = folder.lines("evaluations.jsonl")
    first, last = lines[0], lines[-1]
    name = f"{score_name(last)}_by_prompt"
    console.print(table(first, last, paired_difference(first[name], last[name]) if name in last else None))
    _show_hacking(console, folder)
    console.print(f"run folder  {folder.path}", soft_wrap=True)
    picture = folder.samples / "before-after.png"
    if picture.is_file():
        console.print(f"pictures    {picture}", soft_wrap=True)


def _show_hacking(console: Any, folder: "RunFolder") -> None:
    """The first alarm of a run, if it raised one."""
    from grpaint.measures.hacking import alarm_text

    found = folder.facts().get("hacking")
    if found:
        console.print(
            f"reward hacking? from iteration {found['began']} (none at {found['clean']}): {alarm_text(found)}; best "
            f"before it: {found['best_before'] or 'the base'}",
            soft_wrap=True,
        )


@app.command()
def evaluate(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RUN-OR-CHECKPOINT...", help="Models; RUN:base is what a run began from."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Records, evaluation.json and the page; evaluation/ for several models.")
    ] = None,
    few: Annotated[bool, typer.Option("--few", help="FID on fewer images than features, all the same.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the images.")] = False,
    as_json: AsJson = False,
    sets: Sets = None,
) -> None:
    """Judge a model on held-out prompts, or several against each other. --set takes evaluate.* and measure.*"""
    if len(sources) == 1 and out is None and not sources[0].endswith(":base"):
        _evaluate_one(sources[0], sets or [], as_json=as_json)
        return
    from rich.console import Console

    from grpaint.commands.evaluate.command import assess
    from grpaint.commands.evaluate.sources import read_sources
    from grpaint.report.evaluation_page import alarms, terminal

    folder, console = out or Path("evaluation"), Console()
    log = Console(stderr=True).print
    result = assess(read_sources(sources), sets or [], folder, few=few, keep=keep, log=log)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for part in (*terminal(result), *alarms(result)):
        console.print(part)
    console.print(f"page  {folder / 'evaluation.html'}", soft_wrap=True)


def _evaluate_one(source: str, sets: list[str], *, as_json: bool) -> None:
    from rich.console import Console

    from grpaint.judge import evaluate as judge
    from grpaint.loops import rewards_of
    from grpaint.report.terminal import summary
    from grpaint.run.folder import RunFolder, find_checkpoint
    from grpaint.run.saved import open_model

    policy, recipe = open_model(source, sets)
    line = judge(policy, recipe.data, recipe.evaluate, rewards=rewards_of(recipe))
    if as_json:
        typer.echo(json.dumps(line))
        return
    console = Console()
    console.print(summary(line))
    for folder in find_checkpoint(source).parents:
        _show_hacking(console, RunFolder(folder))


@app.command()
def compare(  # noqa: PLR0913 - reason: one argument a flag
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD...", help="Recipes of one world, files of yours, or NAME=METHOD:KEY=VALUE;KEY=VALUE."
        ),
    ],
    seeds: Annotated[str, typer.Option(help="Numbers, separated by commas.")] = "0,1,2,3,4",
    budget_evaluations: Annotated[int, typer.Option(help="Model evaluations of a run.")] = 0,
    budget_minutes: Annotated[float, typer.Option(help="Or processor minutes of a run, by a calibration.")] = 0.0,
    world: Annotated[str, typer.Option(help="scenes, scenes-epsilon, ..")] = "scenes",
    only: Annotated[list[str] | None, typer.Option(help="Run these methods alone; the page shows all.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: the i-th of n parts.")] = "1/1",
    search: Annotated[bool, typer.Option("--search", help="First search rates and clip ranges.")] = False,
    baseline: Annotated[str | None, typer.Option(help="Compared with; the first method if unset.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run.")] = False,
    out: Annotated[Path, typer.Option(help="Records, comparison.json, the page.")] = Path("comparison"),
    sets: Sets = None,
) -> None:
    """Train methods against each other at equal cost, over several seeds; repeat the command to go on."""
    from grpaint.commands.compare.command import Comparison, asked
    from grpaint.commands.compare.jobs import Entry

    numbers, entries = asked("--seeds", seeds), tuple(Entry.read(word) for word in methods)
    comparison = Comparison(
        entries, world, numbers, budget_evaluations, budget_minutes, out.resolve(), tuple(sets or [])
    )
    comparison.check(only or [], baseline)
    names = [entry.name for entry in entries]
    comparison.go(
        only=only or names, shard=shard, search=search, baseline=baseline or names[0], dry=dry_run, log=typer.echo
    )
