"""What a rank does in the tests of commands besides training: evaluations, scans and checks of one run."""

from pathlib import Path

from grpaint.commands.doctor.command import examine
from grpaint.commands.evaluate.candidates import parse_candidates, weights_hash
from grpaint.commands.evaluate.command import assess
from grpaint.commands.prompt_scan import scan_prompts
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import resolve
from grpaint.judge import evaluate, judging_rewards
from grpaint.recipe.config import open_recipe
from grpaint.run.saved import find_model


def carry_out(world, run, recipe_file, shard, out):
    """The results of each command of one model, which the ranks divide as ``shard`` says.

    Doctor's findings are lists of their check, verdict and evidence, or the line by which it refuses.
    """
    sets = [f"processes.shard={shard}", "evaluate.prompts=5", "evaluate.steps=2"]
    saved = find_model(run, trust=True)
    judging, _ = saved.judging(sets)
    policy = saved.open(judging, world)
    digest = weights_hash(policy, "average")
    line = evaluate(policy, judging.data, judging.evaluate, rewards=judging_rewards(judging), world=world)
    candidates = parse_candidates([f"trained={run}", f"{run}:base"], trust=True)
    compared = assess(candidates, sets, Path(out), few=True, keep=False, log=lambda _: None, world=world)
    recipe, _ = open_recipe(recipe_file, "train", sets)
    scan = scan_prompts(recipe, None, 4, lambda _: None, world)
    return {"weights": digest, "line": line, "compared": compared, "scan": scan, "doctor": findings(recipe, world)}


def findings(recipe, world):
    """What doctor finds; in one process no check is carried out."""
    try:
        found = examine(recipe, resolve(recipe.device, recipe.precision), (), world)
        return [[one.check, one.passed, one.evidence] for one in found]
    except ConfigError as error:
        return str(error)
