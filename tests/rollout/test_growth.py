"""Rollouts that take more steps as a run goes on: how many, at what cost, and what they do not go with."""

from pathlib import Path

import pytest

import tiny_runs
from grpaint.backends.gaussian import GaussianModel
from grpaint.core import Cps, FlowPath, Prompt
from grpaint.core.runtime import Runtime
from grpaint.recipe.config import open_recipe
from grpaint.recipe.costs import costs, run_evaluations
from grpaint.rollout import Closed, Funnel, Growth, Plan, Prefix, Tail, roll
from tiny_runs import REWARD, TINY, command, lines

PLAN = Plan(4, window=Closed(), growth=Growth(most=7, every=10))
GROWING = [
    *(item for item in TINY if not item.startswith("plan.")),
    "plan.steps=2",
    "plan.growth={most=4, every=1}",
    "train.evaluations=0",
    "train.iterations=5",
    "evaluate.pictures_every=0",
]


@pytest.mark.parametrize("tail", [None, Tail(1.0)], ids=["ode", "solver"])
def test_a_step_is_added_every_so_many_iterations(tail):
    plan = Plan(4, window=Closed(), growth=Growth(most=7, every=10), tail=tail)
    plan.check(FlowPath(), 4)
    lengths = [len(plan.course(FlowPath(), iteration, 0).legs) for iteration in (0, 9, 10, 29, 30, 10_000)]
    assert lengths == [4, 4, 5, 6, 7, 7]
    policy = GaussianModel(path=FlowPath()).load(Runtime())
    grown = roll(policy, [Prompt("a")], 2, plan, iteration=30, seed=0).x0
    fixed = roll(policy, [Prompt("a")], 2, Plan(7, window=Closed(), tail=tail), iteration=30, seed=0).x0
    assert grown.equal(fixed)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"window": Prefix(2), "sampler": Cps()}, "growth changes the number of steps"),
        ({"prune": Funnel((2,), (2,))}, "no prune"),
        ({"growth": Growth(most=3)}, "growth.most = 3: must be at least plan.steps = 4"),
    ],
)
def test_what_counts_steps_does_not_grow(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Plan(**{"steps": 4, "window": Closed(), "growth": Growth(most=7)} | settings).check(FlowPath(), 4)


@pytest.mark.parametrize("setting", ["most", "every"])
def test_sizes_are_whole_and_positive(setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1"):
        Growth(**{"most": 9} | {setting: 0})


def test_a_run_costs_what_is_foretold_and_resumes_on_its_way(tmp_path):
    sets = [*GROWING, REWARD, "checkpoint.every=1"]
    recipe, _ = open_recipe("awm", "train", GROWING)
    first, count, total = run_evaluations(recipe)
    assert (first, count, total) == (costs(recipe)["evaluations_iteration"], 5, 5 * first + 12 * (1 + 2 + 2 + 2))
    assert costs(recipe)["evaluations_iteration_last"] == first + 2 * 12
    with tiny_runs.folder(tmp_path):
        assert command("train", "awm", "--name", "straight", sets=sets).code == 0
        assert command("train", "awm", "--name", "parts", sets=[*sets, "train.iterations=2"]).code == 0
        assert command("train", "--name", "parts", "--resume", sets=["train.iterations=5"]).code == 0
        spent, again = (
            [line["cost/model_evaluations"] for line in lines(Path(f"runs/{name}/metrics.jsonl"))]
            for name in ("straight", "parts")
        )
        files = (Path(f"runs/{name}/checkpoints/000005/model.safetensors") for name in ("straight", "parts"))
        weights = [file.read_bytes() for file in files]
    assert spent == again == [first, 2 * first + 12, 3 * first + 36, 4 * first + 60, total]
    assert weights[0] == weights[1]


def test_a_budget_ends_among_growing_iterations():
    recipe, _ = open_recipe("awm", "train", [*GROWING, "train.iterations=1000"])
    first, _, _ = run_evaluations(recipe)
    rows = recipe.train.prompts * recipe.train.group_size
    each = [first, first + rows, *[first + 2 * rows] * 998]
    for budget in (1, first, first + 1, 3 * first, 40 * first):
        recipe, _ = open_recipe("awm", "train", [*GROWING, "train.iterations=1000", f"train.evaluations={budget}"])
        spent = [sum(each[:n]) for n in range(1001)]
        count = next(n for n, evaluations in enumerate(spent) if evaluations >= budget)
        assert run_evaluations(recipe) == (first, count, spent[count])
