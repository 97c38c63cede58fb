"""Run folders written by hand, as a run writes them, for tests of the page of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image, ImageFilter

from grpaint.recipe.config import open_recipe
from grpaint.run.pictures import held_out_file, rollout_file

FOREIGN = "<script>alert(1)</script><img src=x onerror=alert(2)> & 'quoted' \"twice\""
CAPTIONS = (FOREIGN, "two red circles")


def metrics_line(iteration: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    cost = {
        "cost/model_evaluations": 100 * iteration,
        "time/rollout_s": 4.0,
        "time/reward_s": 1.0,
        "time/update_s": 5.0,
    }
    reward = {"reward/checker": 0.5 + 0.01 * iteration, "reward/checker/std": 0.1, "advantage/zero_spread_groups": 3}
    return {"iteration": iteration} | reward | cost | more


def evaluation_line(iteration: int, scores: Sequence[float], name: str = "strict", **more: Any) -> dict[str, Any]:
    """A line of evaluations.jsonl with this score by prompt."""
    mean = sum(scores) / len(scores)
    line = {"iteration": iteration, "guidance": 1.0, "prompts": len(scores), "steps": 20, "score": name}
    kinds = {"two": {"prompts": len(scores), name: mean}}
    return line | {name: mean, f"{name}_by_prompt": list(scores), "by_kind": kinds} | more


def write_lines(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a .jsonl file."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run(
    folder: Path,
    *,
    stage: str = "train",
    recipe: str = "mix-grpo",
    metrics: Sequence[dict[str, Any]] | None = None,
    evaluations: Sequence[dict[str, Any]] | None = None,
    **facts: Any,
) -> Path:
    """Write a run of four iterations without pictures; ``facts`` are values of run.json."""
    folder.mkdir(parents=True)
    settings = open_recipe(recipe, stage, ["train.iterations=4", "evaluate.every=2"])[1]
    (folder / "run.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    known = {"command": ["grpaint", stage, recipe], "status": "finished", "iterations": 4, "versions": {"torch": "2"}}
    (folder / "run.json").write_text(json.dumps(known | facts), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", [metrics_line(n) for n in range(1, 5)] if metrics is None else metrics)
    judged = [
        evaluation_line(0, [0, 0, 1, 1] * 8),
        evaluation_line(2, [0, 1, 1, 1] * 8),
        evaluation_line(4, [1.0] * 32),
    ]
    write_lines(folder / "evaluations.jsonl", judged if evaluations is None else evaluations)
    return folder


def photograph(side: int, seed: int) -> Image.Image:
    """A picture of smooth colours with the grain of a photograph."""
    draw = np.random.default_rng(seed)
    smooth = Image.fromarray(draw.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    grain = draw.normal(0, 22, (side, side, 1))
    levels = np.clip(np.asarray(smooth).astype(float) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(levels).filter(ImageFilter.GaussianBlur(0.6))


def add_pictures(folder: Path, iterations: Sequence[int], captions: Sequence[str] = CAPTIONS, side: int = 32) -> None:
    """Add held-out pictures at these iterations: the same few pictures each time."""
    count = len(captions)
    made = [folder / held_out_file(iterations[0], number) for number in range(count)]
    for iteration in iterations:
        for number in range(count):
            file = folder / held_out_file(iteration, number)
            file.parent.mkdir(parents=True, exist_ok=True)
            if iteration == iterations[0]:
                photograph(side, number).save(file, "WEBP", lossless=side <= 64, quality=90)
            else:
                file.hardlink_to(made[number])
    score = {"strict": [0.0] * count, "reward/checker": [0.25] * count}
    line = {"captions": list(captions), "kinds": ["two"] * count, "score": "strict", "scores": score}
    write_lines(folder / "pictures.jsonl", [{"iteration": iteration} | line for iteration in iterations])


def add_rollout(folder: Path, iteration: int) -> None:
    """Add a rollout of which two groups of three were kept, the second without spread."""
    place = folder / f"samples/rollout/{iteration:06d}"
    place.mkdir(parents=True)
    groups = []
    for group, rewards in enumerate(([0.25, 1.0, 0.5], [0.5, 0.5, 0.5])):
        mean = sum(rewards) / 3
        values = {"rewards": {"checker": rewards}, "total": rewards, "advantage": [value - mean for value in rewards]}
        groups.append({"caption": CAPTIONS[group], "kind": "two"} | values)
        for member in range(3):
            photograph(32, member).save(place / rollout_file(group, member), "WEBP", lossless=True)
    (place / "rollout.json").write_text(json.dumps({"iteration": iteration, "prompts": 12, "groups": groups}))
