"""Commands about rewards."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli import completion
from grpaint.cli.app import REWARDS, app, example, renamed
from grpaint.cli.options import AsJson, Sets
from grpaint.cli.output import lasting_output

group = typer.Typer(no_args_is_help=True, help="Rewards: try one on pictures, or serve it.")
app.add_typer(group, name="reward", rich_help_panel=REWARDS)


@group.command(name="try", epilog=example("reward try my_reward.py:red_left --images pictures"))
def try_(
    reward: Annotated[str, typer.Argument(help="A name of `grpaint list rewards`, or file.py:f.")],
    images: Annotated[Path, typer.Option(help="A folder of pictures; captions may lie beside them as NAME.txt.")],
    prompts: Annotated[Path | None, typer.Option(help="Captions: lines NAME<tab>CAPTION, or .jsonl.")] = None,
    references: Annotated[Path | None, typer.Option(help="A folder of reference pictures of the same names.")] = None,
    as_json: AsJson = False,
    sets: Sets = None,
) -> None:
    """Run a reward's self-test, then score a folder of pictures. --set takes the reward's own settings."""
    from grpaint.commands.try_reward import run

    run(reward, images, prompts, references, sets or [], as_json=as_json)


@group.command(epilog=example("reward serve scenes-scorer --port 8800 --token-env GRPAINT_TOKEN"))
@lasting_output()
def serve(  # noqa: PLR0913 - reason: one argument a flag
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


@app.command(rich_help_panel=REWARDS, epilog=example("vote runs/people --voter ann --voter ben"))
@lasting_output()
def vote(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The folder of a run, or its name in runs/.", autocompletion=completion.runs
        ),
    ],
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


app.command(name="serve-reward", hidden=True)(renamed("serve-reward", "reward serve", serve))
