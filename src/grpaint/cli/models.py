"""Commands about models and what they draw."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, ModelName, Processes, RecipeName, Sets, Trust, WithoutFrozen


@app.command()
def sample(  # noqa: PLR0913 - reason: one argument a flag
    source: Annotated[str | None, typer.Argument(metavar="RUN-OR-CHECKPOINT", help="Or an exported file.")] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="Captions, each in quotes.")] = None,
    seed: Annotated[int, typer.Option(help="Of the start noise of the first picture; the next has the next.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("samples"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Of the sampler; the run's own if unset.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="1 is none; the run's own if unset.")] = None,
    like: Annotated[Path | None, typer.Option(help="Draw this picture of ours again.")] = None,
    snippet: Annotated[bool, typer.Option("--snippet", help="Print a script for diffusers instead.")] = False,
    without_frozen: WithoutFrozen = None,
    no_deploy: Annotated[
        bool, typer.Option("--no-deploy", help="Draw by [evaluate], though the run has [deploy].")
    ] = False,
    sets: Sets = None,
    trust: Trust = False,
) -> None:
    """Draw captions with a trained model. Each picture says how it was drawn."""
    from grpaint.commands.sample.command import DrawRequest, draw_captions

    request = DrawRequest(
        prompts=prompts or [],
        seed=seed,
        out=out,
        steps=steps,
        guidance=guidance,
        like=like,
        snippet=snippet,
        without_frozen=without_frozen or [],
        deploy=not no_deploy,
        sets=sets or [],
        trust=trust,
    )
    draw_captions(source, request)


@app.command()
def export(  # noqa: PLR0913 - reason: one argument a flag
    source: ModelName,
    target: Annotated[str, typer.Option("--for", help="diffusers, comfyui (A1111 too) or merged.")] = "diffusers",
    out: Annotated[Path | None, typer.Option(help="The new folder; exports/NAME-TARGET if unset.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Only say which layers of this adapter file the model has.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Then upload it to this repository of the hub.")
    ] = None,
    without_frozen: WithoutFrozen = None,
    sets: Sets = None,
    trust: Trust = False,
) -> None:
    """Write a trained adapter or pipeline for other programs; it is loaded again and compared first."""
    from grpaint.commands.export import command

    command.export(source, target, out, check, push, without_frozen or [], sets or [], trust=trust)


@app.command()
def doctor(
    recipe: RecipeName = None,
    sets: Sets = None,
    as_json: AsJson = False,
    trust: Trust = False,
    processes: Processes = None,
) -> None:
    """Check a recipe on this machine and model before it runs: PASS or FAIL, the likely cause and the fix.

    With --processes also that many processes give the numbers of one.
    """
    from grpaint.commands.doctor.command import run
    from grpaint.commands.processes import examining_processes, run_in_processes

    if not run_in_processes(processes, 0, lambda: examining_processes(recipe, sets or [], trust=trust)):
        run(recipe, sets or [], as_json=as_json, trust=trust)


@app.command()
def fetch(
    recipe: Annotated[str, typer.Argument(help="A path, WORLD/METHOD, or METHOD.")],
    to: Annotated[Path, typer.Option(help="Where the files go.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    sets: Sets = None,
    trust: Trust = False,
) -> None:
    """Download every file that a recipe needs, with sizes and hashes; nothing else needs a network."""
    from grpaint.commands import fetch as command

    command.fetch(recipe, sets or [], to, dry_run=dry_run, trust=trust)
