"""Run the checks one after another and print what each found."""

import json
from collections.abc import Iterator, Sequence

from typer import Exit, echo

from grpaint.commands.doctor.examination import Check, Examination, Finding
from grpaint.commands.doctor.learning import average, fits, gradients, learns, moves, reload
from grpaint.commands.doctor.sampling import floor, noise, parity, ratio
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Runtime, resolve
from grpaint.recipe.config import TrainRecipe, open_recipe
from grpaint.recipe.pieces import model_description

VERDICTS = {True: "PASS", False: "FAIL", None: "  - "}
CHECKS: tuple[Check, ...] = (parity, noise, ratio, floor, gradients, moves, average, fits, learns, reload)


def examine(recipe: TrainRecipe, runtime: Runtime, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Open the recipe's model, run the checks one after another, and yield what each found.

    Raises:
        ConfigError, CheckpointError: the model cannot be opened.
    """
    case = Examination(recipe, recipe.model.load(runtime), runtime)
    with case.policy.meter.account("doctor"):
        for check in checks:
            try:
                yield check(case)
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001 - reason: a check that cannot be carried out is a finding too
                reason = " ".join(str(error).split())[:200]
                yield Finding(check.__name__, False, f"{type(error).__name__}: {reason}", "it could not be carried out")


def run(name: str | None, sets: list[str], *, as_json: bool) -> None:
    """Check a recipe and print PASS or FAIL, the likely cause and the fix; exit with 1 if a check failed."""
    recipe, _ = open_recipe(name, "train", sets)
    assert isinstance(recipe, TrainRecipe)
    if not as_json and (about := model_description(recipe.model)):
        echo(f"model  {about}")
    failures = 0
    for finding in examine(recipe, resolve(recipe.device, recipe.precision)):
        failures += finding.passed is False
        if as_json:
            echo(json.dumps(finding.plain()))
            continue
        echo(f"{VERDICTS[finding.passed]}  {finding.check}: {finding.evidence}")
        if finding.passed is False:
            echo(f"      likely: {finding.fix}")
    if failures:
        raise Exit(1)
