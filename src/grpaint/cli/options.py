"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from grpaint.cli import completion

RecipeName = Annotated[
    str | None,
    typer.Argument(
        help="A path, WORLD/METHOD, or METHOD; the default when left out.", autocompletion=completion.recipes
    ),
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key.sub=value; may be repeated.", show_default=False)]
RunName = Annotated[
    str | None, typer.Option("--name", help="The folder's name under runs/.", autocompletion=completion.runs)
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds run folders.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of this name.")]
Trust = Annotated[bool, typer.Option("--trust", help="Let settings of a run or file that you only read name code.")]
Processes = Annotated[
    str | None, typer.Option(metavar="N|auto", help="Processes on this machine; auto: one for each GPU or core.")
]
Division = Annotated[
    int | None, typer.Option("--processes", min=1, max=1024, help="How so many processes would divide an iteration.")
]
MaxRestarts = Annotated[int, typer.Option(min=0, max=1000, help="How often processes that died are started again.")]
WithoutFrozen = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Leave this frozen adapter out; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="RUN-OR-CHECKPOINT", help="A run, a checkpoint folder, or a file.", autocompletion=completion.runs
    ),
]
