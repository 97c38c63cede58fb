"""Any number of processes computes what one computes: real processes over gloo, started once for all recipes."""

import itertools
import os
import sys
import warnings

import pytest
import torch
from equality import (
    FEW_ROWS,
    check_equal,
    check_first_rollout,
    largest,
    length,
    relative,
    rounding,
    rounds_alike,
    train_everywhere,
)

from grpaint.recipe.config import locate, read_toml, recipe_names
from tiny_pipelines import save
from tiny_runs import write_recipe

SHORT = [
    *("train.iterations=4", "evaluate.every=1000", "evaluate.prompts=12", "evaluate.probe=12", "evaluate.steps=2"),
    *("evaluate.guided=[]", "evaluate.pictures=0", "checkpoint.every=1000", "threads=1", 'precision="fp32"'),
]
ONCE = [*SHORT, "train.iterations=1"]
RL = ["plan.steps=5", "train.prompts=5", "train.group_size=6", "anchor.batch=12"]
PRUNED = [
    *("plan.steps=6", "plan.prune.at=[2,4]", "plan.prune.keep=[6,4]"),
    *("train.prompts=4", "train.group_size=8", "anchor.batch=12"),
]
DDPO = ["plan.steps=5", "train.prompts=14", "train.updates=1"]
SFT = ["train.batch=13"]
BF16 = [*ONCE, 'precision="bf16"']
LORA = [*SHORT, "train.prompts=3", "train.learning_rate=1e-3", "evaluate.prompts=4", "evaluate.probe=3"]
FEW_BITS = [*LORA, "train.iterations=1", "model.checkpointing=true"]
TWO_REWARDS = [*PRUNED, "train.parts=2", "evaluate.prompts=2", 'rewards.clean={kind="scenes-cleanliness",weight=0.2}']
PIPELINE = "pipeline.toml"  # a recipe for a tiny Stable Diffusion 1.5, written beside the results
ROWS = {2: [[8, 8], [8, 8], [7, 6]], 3: [[8, 4, 4], [8, 4, 4], [5, 4, 4]]}  # of each, node and sft

CASES = {
    "awm": ("scenes/awm", [*SHORT, *RL]),
    "mix": ("scenes/mix-grpo", [*SHORT, *RL, "train.updates=2"]),
    "pro": ("scenes/pro-grpo", [*SHORT, *PRUNED]),
    "ddpo": ("scenes-epsilon/ddpo", [*SHORT, *DDPO]),
    "sft": ("scenes/sft", [*SHORT, *SFT, "train.optimizer.kind=adamw"]),
    "sft-muon": ("scenes/sft", [*SHORT, *SFT, "train.iterations=2"]),
    "few-prompts": ("scenes/mix-grpo", [*ONCE, "train.prompts=1", "train.group_size=13", "anchor.batch=12"]),
    "few-rows": ("scenes/mix-grpo", [*ONCE, "train.prompts=1", "train.group_size=5", "anchor.batch=12"]),
    "each": ("scenes/pro-grpo", [*ONCE, *TWO_REWARDS]),
    "node": ("scenes/pro-grpo", [*ONCE, *TWO_REWARDS, "rewards.checker.place=node"]),
    "awm-bf16": ("scenes/awm", [*RL, *BF16]),
    "lora": (PIPELINE, LORA),
}
SLOW_CASES = {
    "mix-bf16": ("scenes/mix-grpo", [*RL, *BF16]),
    "pro-bf16": ("scenes/pro-grpo", [*PRUNED, *BF16]),
    "ddpo-bf16": ("scenes-epsilon/ddpo", [*DDPO, *BF16]),
    "sft-bf16": ("scenes/sft", [*SFT, *BF16]),
    **{bits: (PIPELINE, [*FEW_BITS, f"model.base_precision={bits}"]) for bits in ("int8", "nf4")},
}
SIZES = (2, 3)


def listed(cases, folder):
    places = {PIPELINE: str(folder / PIPELINE)}
    return {name: {"recipe": places.get(recipe, recipe), "sets": sets} for name, (recipe, sets) in cases.items()}


def train_cases_everywhere(cases, folder):
    own = folder / os.environ.get("PYTEST_XDIST_WORKER", "alone")  # each worker makes the recipe, one of them trains
    own.mkdir(parents=True, exist_ok=True)
    if not (own / PIPELINE).exists():
        write_recipe(own, str(save("sd15", own)))
        (own / "mine.toml").rename(own / PIPELINE)
    return train_everywhere(listed(cases, own), (1, *SIZES), folder / "ranks")


def common(tmp_path_factory, name):
    """A folder of this run of the tests that all its workers share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return train_cases_everywhere(CASES, common(tmp_path_factory, "equality-everyday"))


@pytest.fixture(scope="module")
def slow_results(tmp_path_factory):
    return train_cases_everywhere(SLOW_CASES, common(tmp_path_factory, "equality-slow"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["awm", "mix", "pro", "ddpo", "sft", "few-prompts"])
def test_any_number_of_ranks_computes_the_numbers_of_one(results, name, size):
    if reason := check_equal(results(name, 1), results(name, size)):
        warnings.warn(f"{name} on {size} ranks, {reason}", stacklevel=1)


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_with_fewer_than_four_rows_is_equal_but_for_rounding(results, size):
    assert not check_equal(results("few-rows", 1), results("few-rows", size), FEW_ROWS)


def check_bf16(one, many):
    check_first_rollout(one, many, precision="bf16")
    room = max(1e-2, rounding("bf16"))  # a rank's sum is rounded to bf16
    assert relative(one["gradients"][0], many["gradients"][0]) <= room


@pytest.mark.parametrize("size", SIZES)
def test_rollouts_and_scores_are_bit_equal_in_bf16(results, size):
    check_bf16(results("awm-bf16", 1), results("awm-bf16", size))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["mix", "pro", "ddpo", "sft"])
def test_rollouts_and_scores_of_every_method_are_bit_equal_in_bf16(slow_results, name, size):
    check_bf16(slow_results(f"{name}-bf16", 1), slow_results(f"{name}-bf16", size))


@pytest.mark.parametrize("size", SIZES)
def test_muon_computes_its_step_in_bf16_of_equal_gradients(results, size):
    one, many = results("sft-muon", 1), results("sft-muon", size)
    assert relative(one["gradients"][0], many["gradients"][0]) <= 1e-5
    room = 1e-5 if rounds_alike("fp32") else 1e-2  # a last bit may turn a rounding to bf16 in the first, small step
    assert relative(one["gradients"][1], many["gradients"][1]) <= room
    assert length(one["weights"], many["weights"]) <= 0.2 * length(one["weights"], one["start"])


def test_a_repeated_run_of_the_same_number_of_ranks_is_bit_equal(results, tmp_path):
    names = ("pro", "few-prompts", "awm-bf16")
    again = train_everywhere(listed({name: CASES[name] for name in names}, tmp_path), (2,), tmp_path)
    for name in names:
        first, other = results(name, 2), again(name, 2)
        for key in ("gradients", "weights", "updates", "scores"):
            assert_same(first[key], other[key], key)
        for file in first["lines"]:
            assert timeless(first["lines"][file]) == timeless(other["lines"][file]), file


@pytest.mark.parametrize("size", SIZES)
def test_ranks_that_share_a_reward_compute_the_same_and_say_how_many_rows_each_has(results, size):
    each, node, sft = (results(name, size)["lines"] for name in ("each", "node", "sft"))
    for file in each:
        assert timeless(each[file]) == timeless(node[file])
    metrics = [lines["metrics.jsonl"][0] for lines in (each, node, sft)]
    assert [line["processes/rows"] for line in metrics] == ROWS[size]
    assert metrics[1]["processes/bytes"] - metrics[0]["processes/bytes"] > 100_000  # of images


def timeless(lines):
    """Lines without times, and what follows from them: the slowest rank, and the bytes of the times' digits."""
    varying = ("time/", "memory/", "processes/")
    return [{key: value for key, value in line.items() if not key.startswith(varying)} for line in lines]


def assert_same(one, other, path):
    """Every tensor and value in nested lists and tables is the same."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key, value in one.items():
            assert_same(value, other[key], f"{path}/{key}")
    elif isinstance(one, list):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}/{number}")
    else:
        assert one == other, path


@pytest.mark.parametrize("size", SIZES)
def test_an_adapter_on_a_pipeline_computes_the_numbers_of_one(results, size):
    check_equal(results("lora", 1), results("lora", size), FEW_ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_an_adapter_on_a_base_of_few_bits_computes_the_numbers_of_one(slow_results, bits, size):
    check_equal(slow_results(bits, 1), slow_results(bits, size), FEW_ROWS)


def matrix_sets(name):
    """Settings that make a packaged recipe small, with four rows or more in every network call of a rank."""
    recipe = read_toml(locate(name))
    if recipe["stage"] == "sft":
        return [*SHORT, *SFT]
    sets = [*SHORT, "train.prompts=12"]
    sets += ["train.group_size=4"] if recipe["train"]["group_size"] > 1 else []
    sets += ["plan.prune.keep=[3,2]"] if "prune" in recipe["plan"] else []
    sets += ["advantage.keep=2"] if "keep" in recipe["advantage"] else []
    return sets + (["anchor.batch=12"] if "anchor" in recipe else [])


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_packaged_recipe_of_the_built_in_worlds_computes_the_numbers_of_one(tmp_path):
    names = [name for name in recipe_names() if name.startswith("scenes")]
    cases = {name.replace("/", "-"): (name, matrix_sets(name)) for name in names}
    results = train_everywhere(listed(cases, tmp_path), (1, *SIZES), tmp_path, wait_s=7200)
    failures = []
    sys.stdout.write(f"\n{'recipe':28} ranks  rollouts   gradients  weights\n")
    for case, size in itertools.product(cases, SIZES):
        one, many, note = results(case, 1), results(case, size), ""
        try:
            if case.endswith("-sft"):
                check_first_rollout(one, many)  # the rest: see the test of Muon
            else:
                note = check_equal(one, many)
        except AssertionError as error:
            note = "FAILS"
            failures.append((case, size, str(error)))
        rollouts = "bit-equal" if torch.equal(one["updates"][0]["x0"], many["updates"][0]["x0"]) else "differ"
        gradients, weights = (
            relative(one["gradients"][0], many["gradients"][0]),
            largest(one["weights"], many["weights"]),
        )
        sys.stdout.write(f"{case:28} {size:5}  {rollouts:9}  {gradients:9.1e}  {weights:7.1e}  {note}\n")
    assert not failures
