"""The application that every command joins."""

import os
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Post-train text-to-image models with online reinforcement learning.",
)


@app.callback()
def _everywhere(
    offline: Annotated[bool, typer.Option("--offline", help="Ask no hub; what is not here is an error.")] = False,
) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
