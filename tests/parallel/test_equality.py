"""Any number of processes computes what one computes: real processes over gloo, started once for all recipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpaint.recipe.config import recipe_names
from tiny_pipelines import save
from tiny_runs import write_recipe

RANK = Path(__file__).with_name("training_rank.py")
SHORT = [
    *("train.iterations=2", "evaluate.every=1000", "evaluate.prompts=4", "evaluate.probe=3", "evaluate.steps=2"),
    *("evaluate.guided=[]", "evaluate.pictures=0", "checkpoint.every=1000", "threads=1", 'precision="fp32"'),
]
RL = ["train.prompts=5"]


def train_everywhere(cases, sizes, folder):
    """Train every case on each number of ranks; return the results by size and case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    path = os.pathsep.join([str(RANK.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    for size in sizes:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(RANK), str(rank), str(size), str(folder)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        errors = [rank.communicate()[1] for rank in ranks]
        assert not any(rank.returncode for rank in ranks), "\n".join(errors)
    return {size: torch.load(folder / f"{size}.pt") for size in sizes}


def relative(one, other):
    """The largest relative difference of two lists of tensors."""
    return max(((a - b).norm() / a.norm().clamp(min=1e-12)).item() for a, b in zip(one, other, strict=True))


def recorded(run):
    """The lines of a run without what may differ between equal ones."""
    lines = [line for file in run["lines"].values() for line in file]
    return [{key: v for key, v in line.items() if not key.startswith(("time/", "processes/"))} for line in lines]


def check_equal(one, many, rollout_tolerance):
    """Rollouts and scores of the first iteration, gradients before clipping, weights at the end."""
    for name in ("x0", "advantage"):
        first, other = one["rollouts"][0][name], many["rollouts"][0][name]
        assert first.shape == other.shape
        assert (first - other).norm() <= rollout_tolerance * first.norm(), name
    assert relative(one["gradients"][0], many["gradients"][0]) <= 1e-5
    # Adam divides a gradient by its size, rounding included, so weights differ more than the gradients did
    assert max((a - b).abs().max().item() for a, b in zip(one["weights"], many["weights"], strict=True)) <= 5e-5
    difference, movement = (
        sum((a - b).square().sum() for a, b in zip(one["weights"], w, strict=True))
        for w in (many["weights"], one["start"])
    )
    assert difference.sqrt() <= 1e-2 * movement.sqrt()
    for file, tolerance in (("metrics.jsonl", 1e-5), ("evaluations.jsonl", 1e-4)):
        first, other = one["lines"][file][0], many["lines"][file][0]
        assert {key for key in other if not key.startswith("processes/")} == set(first)
        for key, value in first.items():
            if isinstance(value, float) and not key.startswith("time/"):
                assert other[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
    counts = "cost/model_evaluations", "cost/reward_calls"
    last = [run["lines"]["metrics.jsonl"][-1] for run in (one, many)]
    assert [last[0].get(name) for name in counts] == [last[1].get(name) for name in counts]


PARTS = [*SHORT, *RL, "train.parts=2", "evaluate.prompts=2", 'rewards.clean={kind="scenes-cleanliness",weight=0.2}']
ROWS = {2: [[36, 24], [36, 24], [4, 3]], 3: [[24, 24, 12], [24, 24, 12], [3, 2, 2]]}  # of pro, node and sft
CASES = {
    "awm": {"recipe": "scenes/awm", "sets": [*SHORT, *RL]},
    "mix": {"recipe": "scenes/mix-grpo", "sets": [*SHORT, *RL, "train.updates=2"]},
    "pro": {"recipe": "scenes/pro-grpo", "sets": PARTS},
    "node": {"recipe": "scenes/pro-grpo", "sets": [*PARTS, "rewards.checker.place=node"]},
    "ddpo": {"recipe": "scenes-epsilon/ddpo", "sets": [*SHORT, *RL]},
    "sft": {"recipe": "scenes/sft", "sets": [*SHORT, "train.batch=7"]},
    "few-prompts": {"recipe": "scenes/mix-grpo", "sets": [*SHORT, "train.prompts=1", "train.group_size=5"]},
}


def test_any_number_of_ranks_computes_the_numbers_of_one(tmp_path):
    results = train_everywhere(CASES, (1, 2, 3), tmp_path)
    for size in (2, 3):
        for name in CASES:
            check_equal(results[1][name], results[size][name], 1e-5)
        assert recorded(results[size]["pro"]) == recorded(results[size]["node"])
        metrics = [results[size][name]["lines"]["metrics.jsonl"][0] for name in ("pro", "node", "sft")]
        assert [line["processes/rows"] for line in metrics] == ROWS[size]
        assert metrics[1]["processes/bytes"] - metrics[0]["processes/bytes"] > 100_000  # of images


def test_an_adapter_on_a_pipeline_computes_the_numbers_of_one(tmp_path):
    write_recipe(tmp_path, str(save("sd15", tmp_path)))
    cases = {
        "lora": {"recipe": str(tmp_path / "mine.toml"), "sets": [*SHORT, "train.prompts=3", "train.learning_rate=1e-3"]}
    }
    results = train_everywhere(cases, (1, 2, 3), tmp_path)
    for size in (2, 3):
        check_equal(results[1]["lora"], results[size]["lora"], 1e-6)


@pytest.mark.slow
def test_every_packaged_recipe_of_the_built_in_worlds_computes_the_numbers_of_one(tmp_path):
    names = [name for name in recipe_names() if name.startswith("scenes")]
    cases = {
        name.replace("/", "-"): {
            "recipe": name,
            "sets": [*SHORT, *(["train.batch=7"] if name.endswith("/sft") else RL)],
        }
        for name in names
    }
    results = train_everywhere(cases, (1, 2, 3), tmp_path)
    for size in (2, 3):
        for name in cases:
            check_equal(results[1][name], results[size][name], 1e-5)
