"""Commands that train, judge and compare."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli import completion
from grpaint.cli.app import JUDGE, TRAIN, app, example
from grpaint.cli.options import AsJson, MaxRestarts, Processes, RecipeName, Resume, RunName, Runs, Sets, Trust
from grpaint.cli.output import lasting_output

RUNS = Path("runs")


@app.command(rich_help_panel=TRAIN, epilog=example("train flow-grpo-fast --name first --set train.seed=1"))
@lasting_output()
def train(
    recipe: RecipeName = None,
    sets: Sets = None,
    name: RunName = None,
    runs: Runs = RUNS,
    resume: Resume = False,
    processes: Processes = None,
    max_restarts: MaxRestarts = 3,
) -> None:
    """Post-train with reinforcement learning; without RECIPE the built-in model with the default method."""
    from grpaint.commands.estimate.command import advice
    from grpaint.commands.processes import run_in_processes, training_processes
    from grpaint.commands.train import run

    if not run_in_processes(processes, max_restarts, lambda: training_processes("train", recipe, sets or [])):
        run("train", recipe, sets or [], runs, name, resume=resume, advice=advice)


@app.command(rich_help_panel=TRAIN, epilog=example("sft examples/tagged-scenes/sft.toml --name tagged"))
@lasting_output()
def sft(
    recipe: RecipeName = None,
    sets: Sets = None,
    name: RunName = None,
    runs: Runs = RUNS,
    resume: Resume = False,
    processes: Processes = None,
    max_restarts: MaxRestarts = 3,
) -> None:
    """Train on captioned images (the supervised stage)."""
    from grpaint.commands.estimate.command import advice
    from grpaint.commands.processes import run_in_processes, training_processes
    from grpaint.commands.train import run

    if not run_in_processes(processes, max_restarts, lambda: training_processes("sft", recipe, sets or [])):
        run("sft", recipe, sets or [], runs, name, resume=resume, advice=advice)


@app.command(rich_help_panel=JUDGE, epilog=example("evaluate base=runs/first:base tuned=runs/first --out judged"))
@lasting_output()
def evaluate(  # noqa: PLR0913 - reason: one argument a flag
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN-OR-CHECKPOINT...",
            help="Models; RUN:base is what a run began from.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Records, evaluation.json and the page; evaluation/ for several models.")
    ] = None,
    few: Annotated[bool, typer.Option("--few", help="FID on fewer images than features, all the same.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the images.")] = False,
    as_json: AsJson = False,
    sets: Sets = None,
    trust: Trust = False,
    processes: Processes = None,
) -> None:
    """Judge a model on held-out prompts, or several against each other. --set takes evaluate.* and measure.*"""
    from grpaint.commands.evaluate.command import run
    from grpaint.commands.processes import evaluating_processes, run_in_processes

    if not run_in_processes(processes, 0, lambda: evaluating_processes(sources, sets or [], trust=trust)):
        run(sources, sets or [], out, few=few, keep=keep, as_json=as_json, trust=trust)


@app.command(rich_help_panel=JUDGE, epilog=example("compare awm flow-grpo --budget-evaluations 100000 --seeds 0,1"))
@lasting_output()
def compare(  # noqa: PLR0913 - reason: one argument a flag
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD...",
            help="Recipes of one world, files of yours, or NAME=METHOD:KEY=VALUE;KEY=VALUE.",
            autocompletion=completion.recipes,
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
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Runs at a time, one process each; by default one a usable core."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run.")] = False,
    out: Annotated[Path, typer.Option(help="Records, comparison.json, the page.")] = Path("comparison"),
    sets: Sets = None,
) -> None:
    """Train methods against each other at equal cost, over several seeds; repeat the command to go on."""
    from grpaint.commands.compare.command import Comparison
    from grpaint.report.console import echo

    comparison = Comparison.parse(methods, world, seeds, (budget_evaluations, budget_minutes), out, sets or [])
    comparison.run(
        only=only or [],
        shard=shard,
        search=search,
        baseline=baseline,
        dry=dry_run,
        log=echo,
        processes=processes,
    )


@app.command(rich_help_panel=TRAIN, epilog=example("report first --single first.html"))
@lasting_output()
def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The folder of a run, or its name in runs/.", autocompletion=completion.runs
        ),
    ],
    single: Annotated[
        Path | None, typer.Option(help="Write one file with the pictures inside, of 6 MB at most.")
    ] = None,
) -> None:
    """Write the page of a run anew and print its address; a run that goes on writes it at every evaluation."""
    from grpaint.commands.report import write_report

    write_report(run, single)


@app.command(rich_help_panel=TRAIN, epilog=example("view runs --port 8017"))
@lasting_output()
def view(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder that holds run folders.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8017,
    token_file: Annotated[Path | None, typer.Option(help="The file with a token of yours.")] = None,
) -> None:
    """Show all runs in a browser of this machine: a table, the page of each, several side by side."""
    from grpaint.commands.view.command import view

    view(runs, port, token_file)
