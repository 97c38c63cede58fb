"""Commands about models and what they draw."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli import completion
from grpaint.cli.app import JUDGE, SHARE, app, example
from grpaint.cli.options import ModelName, Sets, Trust, WithoutFrozen


@app.command(rich_help_panel=JUDGE, epilog=example('sample first "a red circle above a blue square" --seed 3'))
def sample(  # noqa: PLR0913 - reason: one argument a flag
    source: Annotated[
        str | None,
        typer.Argument(metavar="RUN-OR-CHECKPOINT", help="Or an exported file.", autocompletion=completion.runs),
    ] = None,
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


@app.command(rich_help_panel=SHARE, epilog=example("export runs/tuned --for comfyui --out for-comfyui"))
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
