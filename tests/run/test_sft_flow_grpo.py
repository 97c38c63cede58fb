"""The two-stage recipe on the epsilon path: what runs, where rows enter, which rewards speak, and its resume."""

import dataclasses

import pytest

import tiny_runs
from grpaint.core.runtime import Runtime
from grpaint.recipe.config import open_recipe
from grpaint.rewards.scenes import SceneScorer
from grpaint.rollout import Independent, roll
from grpaint.scenes.world import judge
from tiny_runs import TINY, command, lines

RECIPE = "sft-flow-grpo"
SETS = [  # from the shipped base; of 4 steps, rows with a reference act in the last two
    *(item for item in TINY if not item.startswith(("model.start", "plan.window"))),
    *("plan.window.size=2", "plan.window.low=1", "plan.window.high=1"),
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing stopped."""
    with tiny_runs.folder(tmp_path_factory.mktemp("straight")) as here:
        end = command("train", RECIPE, "--name", "it", sets=SETS)
        assert end.code == 0, end.err
    return here / "runs/it"


def test_the_recipe_trains_and_starts_at_its_reference(straight):
    first, *_, last = lines(straight / "metrics.jsonl")
    for name in ("scorer", "distance", "cleanliness"):
        assert f"reward/{name}" in first
    assert first["policy/kl"] == 0  # the start weights are the KL reference
    assert first["policy/ratio_error"] == 0
    assert last["policy/kl"] > 0
    assert last["policy/grad_norm"] > 0


def test_a_resumed_run_equals_the_straight_one(straight, tmp_path):
    with tiny_runs.folder(tmp_path):
        assert command("train", RECIPE, "--name", "it", sets=[*SETS, "train.iterations=2"]).code == 0
        end = command("train", "--name", "it", "--resume", sets=["train.iterations=4"])
        assert end.code == 0, end.err
        tiny_runs.same(straight, tmp_path / "runs/it")


def test_half_of_the_groups_enter_at_a_reference_and_the_distance_speaks_of_them_alone():
    recipe, _ = open_recipe(RECIPE, "train", ["train.prompts=4", "train.group_size=3", "plan.window.low=4"])
    policy = recipe.model.load(Runtime("cpu", "fp32"))
    levels = [sigma / (alpha + sigma) for _, alpha, sigma in policy.path.grid(recipe.plan.steps)]
    enter = next(step for step, level in enumerate(levels) if level <= recipe.plan.start.strength)
    prompts = recipe.data.prompts(4, 0, 0)
    rollout = roll(policy, prompts, 3, recipe.plan, iteration=0, seed=0)
    assert rollout.references.view(4, 3).float().mean(1).sort().values.tolist() == [0, 0, 1, 1]
    for transition in rollout.transitions:
        there = rollout.references[transition.rows]
        assert there.any() == (transition.step >= enter)
    table = recipe.reward_set().score(
        policy.decode(rollout.x0), [prompts[i] for i in rollout.group], rollout.references
    )
    assert list(table.applies) == ["distance"]
    shares = recipe.advantage.shares(table, rollout)
    assert shares["distance"][~rollout.references].eq(0).all()
    assert shares["distance"][rollout.references].ne(0).all()


def test_the_scorer_orders_a_group_as_the_checker_does():
    """It never saw a model's samples. 8 groups of 12 from the shipped base: the docs have the figures of 36."""
    recipe, _ = open_recipe(RECIPE, "train", ["precision=fp32"])
    policy = recipe.model.load(Runtime("cpu", "fp32"))
    prompts = recipe.data.prompts(8, 0, 5)
    plan = dataclasses.replace(recipe.plan, start=Independent())
    images = policy.decode(roll(policy, prompts, 12, plan, iteration=0, seed=5).x0)
    every = [prompt for prompt in prompts for _ in range(12)]
    strict, score = judge(images, every).strict.view(8, 12), SceneScorer()(images, every).view(8, 12)
    shares = [
        (group[right == 1][:, None] > group[right == 0]).float().mean()
        for group, right in zip(score, strict, strict=True)
        if 0 < right.sum() < 12
    ]
    assert len(shares) >= 4
    assert sum(shares) / len(shares) > 0.9


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["plan.start.kind=independent"], ["rewards.distance", "plan.start.kind"]),
        (["data.references=false"], ["data.references"]),
        (['plan.window={kind="whole",skip_last=0}'], ["plan", "step 9"]),
        (["plan.start.strength=0.01"], ["plan", "strength"]),
    ],
)
def test_impossible_recipes_are_refused_before_weights_load(sets, words, tmp_path):
    with tiny_runs.folder(tmp_path):
        end = command("train", RECIPE, sets=[*sets, "model.start=nowhere.safetensors"])
    assert end.code == 2
    for word in words:
        assert word in end.err
