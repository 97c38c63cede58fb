"""Run the checks of ``grpaint doctor`` and print their findings."""

import json
from collections.abc import Iterator, Sequence

from grpaint.commands.doctor.examination import Check, Examination, Finding
from grpaint.commands.doctor.learning import (
    export_reloads,
    gradients,
    grpo_raises_reward,
    running_average,
    sft_lowers_loss,
    weights_move,
)
from grpaint.commands.doctor.ranks import examine_ranks
from grpaint.commands.doctor.sampling import initial_ratio, noise_floor, sampler_parity, step_noise
from grpaint.core.errors import ConfigError, RunError
from grpaint.core.runtime import Runtime, resolve
from grpaint.core.user_code import describe, interrupted
from grpaint.parallel.join import join_group
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import DEFAULT, TrainRecipe, open_recipe, stage_of
from grpaint.recipe.pieces import model_description
from grpaint.recipe.trust import ExaminedRecipe, foreign_rewards, left_out_lines, recipe_origin, take
from grpaint.report.console import echo
from grpaint.run.opening import load_model
from grpaint.storage.reading import read_toml

VERDICTS = {True: "PASS", False: "FAIL", None: "  - "}
NAMES: dict[Check, str] = {  # by which a check that raises is reported
    sampler_parity: "parity",
    step_noise: "noise",
    initial_ratio: "ratio",
    noise_floor: "floor",
    gradients: "gradients",
    weights_move: "moves",
    running_average: "average",
    sft_lowers_loss: "fits",
    grpo_raises_reward: "learns",
    export_reloads: "reload",
}
CHECKS = tuple(NAMES)
ONE_PROCESS = "the checks of one process"


def examine(
    recipe: TrainRecipe | ExaminedRecipe, runtime: Runtime, checks: Sequence[Check] = CHECKS, world: World = ONE
) -> Iterator[Finding]:
    """Load the recipe's model and yield the finding of each check in turn, those of many processes last.

    The first process of ``world`` alone carries out ``checks``, unless the processes divide the network.

    Raises:
        ConfigError, CheckpointError: the model cannot be opened, or divided so.
    """
    case = Examination(recipe, load_model(recipe, world, runtime=runtime), runtime)
    if world.shares_weights:
        raise ConfigError(
            'processes.shard = "all": doctor trains in one process first, which needs the whole network that is '
            "trained; --set processes.shard=none, with a smaller model if it does not fit."
        )
    if world.divides:
        checks = ()
        yield Finding(ONE_PROCESS, None, "they need the whole network: --set processes.shard=none, without --processes")
    with case.policy.meter.account("doctor"):
        for check in checks if world.first else ():
            try:
                finding = check(case)
            except BaseException as error:
                if isinstance(error, ConfigError) or interrupted(error):
                    raise
                name = NAMES.get(check, check.__name__)
                finding = Finding(name, False, describe(error), "it could not be carried out")
            yield finding
        if world.size > 1:
            yield from examine_ranks(case, world)


def open_examined(name: str, sets: list[str], *, trust: bool) -> TrainRecipe | ExaminedRecipe:
    """Open a recipe; of a run's own one, without ``trust``, the tables that are examined, its rewards left out.

    Raises:
        ConfigError: it cannot run, or a table that is examined names code.
    """
    origin = recipe_origin(name, trust=trust)
    if not origin.trusted and stage_of(name) == "train":
        table = read_toml(origin.file)
        for line in left_out_lines(foreign_rewards(table, origin), origin):
            echo(line, err=True)
        return take(ExaminedRecipe, table, origin, sets)
    with origin.guard(sets):
        recipe, _ = open_recipe(name, "train", sets)
    assert isinstance(recipe, TrainRecipe)
    return recipe


def run(name: str | None, sets: list[str], *, as_json: bool, trust: bool) -> None:
    """Check a recipe and print PASS or FAIL, the likely cause and the fix.

    As one of many processes it also checks that they give the numbers of one.

    Raises:
        ConfigError, CheckpointError: the recipe or its model cannot be opened.
        RunError: a check failed.
    """
    with join_group() as world:
        world.phase = "doctor"
        recipe = open_examined(DEFAULT["train"] if name is None else name, sets, trust=trust)
        if world.first and not as_json and (about := model_description(recipe.model)):
            echo(f"model  {about}")
        recipe.data.prepare(lambda _: None)
        verdicts = []
        for finding in examine(recipe, resolve(recipe.device, recipe.precision), world=world):
            verdicts.append(finding.passed)
            if world.first:
                _print(finding, as_json=as_json)
        if world.first and False in verdicts:
            raise RunError(f"{verdicts.count(False)} of {len(verdicts)} checks failed.")


def _print(finding: Finding, *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(finding.plain()))
        return
    echo(f"{VERDICTS[finding.passed]}  {finding.check}: {finding.evidence}")
    if finding.passed is False:
        echo(f"      likely: {finding.fix}")
