"""Commands that serve."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli.app import app
from grpaint.cli.options import Sets
from grpaint.cli.output import lasting_output


@app.command(name="serve-reward")
@lasting_output()
def serve_reward(  # noqa: PLR0913 - reason: one argument a flag
    reward: Annotated[str, typer.Argument(help="A name that `grpaint list rewards` gives, or file.py:function.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")],
    host: Annotated[str, typer.Option(help="Another than loopback needs a token of yours.")] = "127.0.0.1",
    token_env: Annotated[str | None, typer.Option(help="The environment variable with the token.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The file with the token.")] = None,
    max_mib: Annotated[int, typer.Option(help="The largest request.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take to arrive, and to be scored.")] = 300.0,
    batch: Annotated[int, typer.Option(help="Images of waiting requests that are scored together; 0: none.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads; 0: PyTorch decides.")] = 0,
    sets: Sets = None,
) -> None:
    """Serve a reward over HTTP, for runs with kind = "remote". --set takes the reward's own settings."""
    from grpaint.commands.serve_reward import Service, run

    run(reward, sets or [], Service(host, port, token_env, token_file, max_mib, timeout, batch, threads))


@app.command()
@lasting_output()
def view(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder that holds run folders.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8017,
    token_file: Annotated[Path | None, typer.Option(help="The file with a token of yours.")] = None,
) -> None:
    """Show all runs in a browser of this machine: a table, the page of each, several side by side."""
    from grpaint.commands.view.command import view

    view(runs, port, token_file)


@app.command()
@lasting_output()
def vote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its name in runs/.")],
    host: Annotated[str, typer.Option(help="This machine's address, for phones.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8018,
    voters: Annotated[int, typer.Option(min=0, max=1000, help="So many voters with numbers for names.")] = 0,
    voter: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A voter; may be repeated.")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write the votes as pairs of images instead.")
    ] = None,
) -> None:
    """Let people rank the images of a run that asks them; each voter has a link of his own."""
    from grpaint.commands.vote.command import export_votes, serve_votes

    if export:
        export_votes(run, export)
    else:
        serve_votes(run, host, port, voters, voter or [])
