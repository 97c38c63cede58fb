"""Commands about rewards."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli.app import app
from grpaint.cli.options import AsJson, Sets

group = typer.Typer(no_args_is_help=True, help="Rewards: try one on pictures.")
app.add_typer(group, name="reward")


@group.command(name="try")
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
