"""The alarm of reward hacking in a run: whether an evaluation raises it, and why it ends the run."""

from typing import Any

from grpaint.measures.hacking import alarm_onset, alarm_text, hacking_alarm
from grpaint.measures.score import deciding_line
from grpaint.recipe.config import Recipe, TrainRecipe
from grpaint.run.folder import RunFolder

Line = dict[str, Any]


def check_hacking(recipe: Recipe, folder: RunFolder, line: Line, best_before: int) -> tuple[Line, Line | None]:
    """Return an evaluation's line with what it says of the alarm, and the alarm; record the first alarm in run.json.

    The line gets ``hacking`` with where it began if the evaluation raises the alarm. ``best_before`` is the iteration
    of the best evaluation so far. With ``[deploy]`` the deployed model may raise it, too.
    """
    earlier = folder.lines("evaluations.jsonl")
    if not isinstance(recipe, TrainRecipe) or not earlier or earlier[0]["iteration"] != 0:
        return line, None  # the base is being judged, or its line was damaged
    silent = [f"reward/{name}" for name, item in recipe.rewards.items() if not item.weight]
    alarm = hacking_alarm(earlier[0], line, recipe.watch, silent)
    if not alarm and "deploy" in line:
        alarm = hacking_alarm(deciding_line(earlier[0]), deciding_line(line), recipe.watch, silent)
    if not alarm:
        return line, None
    onset = alarm_onset(earlier, line["iteration"])
    if onset["began"] == line["iteration"]:
        folder.status(hacking=onset | {"best_before": best_before} | alarm)
    return line | {"hacking": onset | alarm}, alarm


def reason_to_stop(recipe: Recipe, folder: RunFolder, alarm: Line | None, iteration: int, best_before: int) -> str:
    """Return why the run must stop if its alarm is raised and ``watch.stop`` is set, or an empty text."""
    if not (alarm and isinstance(recipe, TrainRecipe) and recipe.watch.stop):
        return ""
    best = folder.checkpoints / f"{best_before:06d}" if best_before else "the base itself"
    return (
        f"reward hacking since iteration {iteration}: {alarm_text(alarm)}. The best before it is {best}. Fix "
        "the reward, or hold the model closer to the base; watch.stop = false only records it."
    )
