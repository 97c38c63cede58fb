"""Ranks that divide a network's parameters compute what one process computes, however unequally often they need it."""

import itertools
from pathlib import Path

import pytest
import torch
from equality import FEW_ROWS, check_first_rollout, largest, length, train_everywhere
from ranks import run_ranks

from grpaint.core.errors import ConfigError
from grpaint.recipe.config import open_recipe
from tiny_pipelines import save

PIPELINES = {"sdxl": "ddim", "sd3": "flow-sde", "flux-dev": "flow-sde"}
SIZES = (2, 3)
RECIPE = """
precision = "fp32"
threads = 1
data = {{ kind = "prompts", train = "{prompts}", held_out_share = 0.5 }}
[model]
kind = "diffusers"
base = "{base}"
height = 16
width = 16
lora = {{ rank = 2 }}
[plan]
steps = 3
sampler = {{ kind = "{sampler}" }}
[objective]
kind = "policy-gradient"
penalty = {{ kind = "velocity-mse" }}
[rewards.bright]
kind = "{reward}:bright"
self_test = false
[train]
iterations = 3
prompts = 3
group_size = 3
learning_rate = 3e-4
constant = 0
[evaluate]
every = 1000
prompts = 2
steps = 2
guided = []
pictures = 0
[checkpoint]
every = 1000
"""
REWARD = """
def bright(images, prompts):
    return images.mean((1, 2, 3))

def flat(images, prompts):
    some = images.new_tensor([len(prompt.text) % 3 == 0 for prompt in prompts])
    return images.mean((1, 2, 3)) * some
"""
BEHAVIOUR = [
    *('objective={kind="awm"}', 'plan.window={kind="closed"}', 'plan.start={kind="independent"}'),
    *("plan.weights=behaviour", "behaviour={slope=0.2,most=0.5}"),
]
CASES = {
    "uneven": ["train.parts=2"],
    "flat": ["train.prompts=4", "objective.minibatch=2", 'rewards.bright.kind="{reward}:flat"'],
    "pruned": ["plan.prune={at=[1],keep=[2],audit=2}", "train.updates=2", "train.group_size=4"],
    "behaviour": BEHAVIOUR,
}


def write_recipe(folder, pipeline):
    """The file of a recipe that trains a tiny pipeline, which is saved beside it."""
    reward, prompts = folder / "reward.py", folder / "prompts.txt"
    reward.write_text(REWARD)
    prompts.write_text("".join(f"{'a ' * (number % 5)}cat {number}\n" for number in range(20)))
    sampler, base = PIPELINES[pipeline], save(pipeline, folder)
    file = folder / f"{pipeline}.toml"
    file.write_text(RECIPE.format(base=base, sampler=sampler, reward=reward, prompts=prompts))
    return str(file)


def train_matrix(cases, folder):
    """Train cases, of a pipeline, settings and a way to divide, on 1, 2 and 3 ranks; return a reader of the numbers."""
    recipes = {pipeline: write_recipe(folder, pipeline) for pipeline in dict.fromkeys(case[0] for case in cases)}
    listed = {}
    for pipeline, case, shard in cases:
        sets = [item.replace("{reward}", str(folder / "reward.py")) for item in CASES[case]]
        listed[f"{pipeline}-{case}-{shard}"] = {
            "recipe": recipes[pipeline],
            "sets": [*sets, f"processes.shard={shard}"],
        }
    first = {f"{pipeline}-{case}": listed[f"{pipeline}-{case}-{shard}"] for pipeline, case, shard in cases}
    one = train_everywhere(first, (1,), folder / "alone")
    many = train_everywhere(listed, SIZES, folder / "ranks", wait_s=3600)
    return lambda case, size: many("-".join(case), size) if size > 1 else one("-".join(case[:2]), 1)


def check(one, many):
    """The first rollout, all gradients before clipping, the weights, and what each set of weights answers."""
    check_first_rollout(one, many, FEW_ROWS)
    assert len(one["gradients"]) == len(many["gradients"]) >= 3
    for number, (first, other) in enumerate(zip(one["gradients"], many["gradients"], strict=True)):
        assert length(first, other) <= (1e-4 if number else 1e-5) * length(first, map(torch.zeros_like, first)), number
    assert largest(one["weights"], many["weights"]) <= 1e-5
    assert one["answers"].keys() == many["answers"].keys()
    for name, answer in one["answers"].items():
        assert largest([answer], [many["answers"][name]]) <= 1e-5, name
    for first, other in itertools.combinations(many["answers"], 2):
        assert largest([many["answers"][first]], [many["answers"][other]]) > 1e-5, (first, other)


EVERYDAY = [("sdxl", "flat", "base"), ("sd3", "pruned", "base"), ("flux-dev", "behaviour", "base")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return train_matrix(EVERYDAY, tmp_path_factory.mktemp("everyday"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", EVERYDAY, ids="-".join)
def test_ranks_that_divide_a_network_compute_what_one_computes(results, case, size):
    check(results(case, 1), results(case, size))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_kind_of_rollout_on_every_pipeline_and_every_way_to_divide(tmp_path):
    cases = list(itertools.product(PIPELINES, CASES, ("none", "base")))
    results, failures = train_matrix(cases, tmp_path), []
    for case, size in itertools.product(cases, SIZES):
        try:
            check(results(case, 1), results(case, size))
        except AssertionError as error:
            failures.append((case, size, str(error)[:200]))
    assert not failures


@pytest.mark.parametrize("size", SIZES)
def test_ranks_may_call_a_divided_network_in_any_order_and_unequally_often(size):
    every = run_ranks(size, "divided_network:programs", 8)
    assert all(apart == 0 for apart, _ in every)
    assert len({calls for _, calls in every}) > 1


def test_a_rank_that_dies_while_others_gather_its_share_is_lost_in_one_line():
    message = run_ranks(2, "divided_network:a_rank_dies")[0]
    assert message.startswith("rank 0 waited")
    assert message.endswith("continue with --resume.")
    assert "\n" not in message


def test_a_second_backward_pass_through_a_call_is_refused():
    every = run_ranks(2, "divided_network:two_backward_passes")
    assert all(message.startswith("processes.shard: two backward passes") for message in every)


def test_what_cannot_be_divided_is_refused_in_a_line_before_weights_load(tmp_path):
    lora, divide = write_recipe(tmp_path, "sd3"), "processes.shard=base"
    full = tmp_path / "full.toml"
    full.write_text(Path(lora).read_text().replace("lora =", "# lora ="))
    refusals = {
        "model.base_precision": (lora, ["model.base_precision=int8"]),
        "nf4": (lora, ["model.base_precision=nf4"]),
        "model.lora": (full, []),
        "model.kind": ("scenes/awm", []),
    }
    for reason, (recipe, sets) in refusals.items():
        with pytest.raises(ConfigError, match=f'processes.shard = "base": .*{reason}') as error:
            open_recipe(str(recipe), "train", [*sets, divide])
        assert "\n" not in str(error.value)
    assert open_recipe(lora, "train", [divide])[1]["processes"]["shard"] == "base"
