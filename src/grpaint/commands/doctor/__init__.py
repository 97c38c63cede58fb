"""``grpaint doctor``: does this recipe, on this machine and this model, do what it must before it can learn anything?

Every check is a function of an :class:`Examination`, usable alone; together they are the conformance suite that a model
family has to pass (a list of them is :data:`CHECKS`).
"""

from collections.abc import Iterator, Sequence

from grpaint.commands.doctor.examination import Check, Examination, Finding
from grpaint.commands.doctor.learning import average, fits, gradients, learns, moves, reload
from grpaint.commands.doctor.sampling import floor, noise, parity, ratio
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Runtime
from grpaint.recipe.config import TrainRecipe

CHECKS: tuple[Check, ...] = (parity, noise, ratio, floor, gradients, moves, average, fits, learns, reload)


def examine(recipe: TrainRecipe, runtime: Runtime, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Open the recipe's model and run the checks, one after another.

    Raises:
        ConfigError, CheckpointError: where the model cannot be opened.
    """
    case = Examination(recipe, recipe.model.load(runtime), runtime)
    with case.policy.meter.account("doctor"):
        for check in checks:
            try:
                yield check(case)
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001 - reason: a check that cannot be carried out is a finding too
                said = " ".join(str(error).split())[:200]
                yield Finding(check.__name__, False, f"{type(error).__name__}: {said}", "it could not be carried out")


__all__ = [
    "CHECKS",
    "Check",
    "Examination",
    "Finding",
    "average",
    "examine",
    "fits",
    "floor",
    "gradients",
    "learns",
    "moves",
    "noise",
    "parity",
    "ratio",
    "reload",
]
