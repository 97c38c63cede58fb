"""The application that every command joins."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

TRAIN, JUDGE, PREPARE, SHARE, REWARDS = "Train", "Judge", "Prepare", "Share", "Rewards"  # the panels of --help


class _Commands(TyperGroup):
    """The commands; an end that a user's own code asks for, such as by ``sys.exit(0)``, is not taken for theirs."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if _asks_for_the_end(error) and _of_user_code(error):
                from grpaint.core.errors import RunError
                from grpaint.core.importing import user_code_location
                from grpaint.core.user_code import describe

                raise RunError(f"{user_code_location(error)}: {describe(error)}") from error
            raise


def _asks_for_the_end(error: BaseException) -> bool:
    """Return whether typer, or Python, would end the command at ``error`` without a word or with a traceback."""
    return not isinstance(error, Exception) or isinstance(error, EOFError | BrokenPipeError)


def _of_user_code(error: BaseException) -> bool:
    """Return whether a user's code raised ``error``, and not a signal."""
    if "grpaint.core.importing" not in sys.modules:  # no code of a user's has run
        return False
    from grpaint.core.importing import user_code_location
    from grpaint.core.user_code import interrupted

    return not interrupted(error) and bool(user_code_location(error))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Post-train text-to-image models with online reinforcement learning.",
)


@app.callback()
def _everywhere(
    offline: Annotated[bool, typer.Option("--offline", help="Ask no hub; what is not here is an error.")] = False,
) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def example(words: str) -> str:
    """Return the line below the options in a command's ``--help``."""
    return f"Example:  grpaint {words}"


def renamed(old: str, new: str, command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` as it is called by an old name: it says the new one on standard error first."""

    @wraps(command)
    def run(*args: Any, **settings: Any) -> None:
        from grpaint.report.console import echo

        echo(f"grpaint: {old} is now `grpaint {new}`; the old name will go.", err=True)
        command(*args, **settings)

    return run
