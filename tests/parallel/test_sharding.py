"""Ranks that divide a network's parameters compute what one process computes, however unequally often they need it."""

import itertools

import pytest
import torch
from equality import FEW_ROWS, check_first_rollout, largest, length, train_everywhere
from ranks import run_ranks

from grpaint.core.errors import ConfigError
from grpaint.recipe.config import open_recipe
from grpaint.storage.files import read_weights
from tiny_pipelines import save, stock

PIPELINES = {"sdxl": "ddim", "sd3": "flow-sde", "flux-dev": "flow-sde"}
SIZES = (2, 3)
# AdamW makes steps of the learning rate of gradients that are rounding alone, such as those of the biases of keys: a
# larger eps keeps them small. A rank draws four images or more at once, so that they are bit-equal.
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
group_size = 4
learning_rate = 1e-3
optimizer = {{ kind = "adamw", eps = 1e-3 }}
constant = 0
[evaluate]
every = 1000
prompts = 2
steps = 2
guided = []
pictures = 0
[checkpoint]
every = 2
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
    "uneven": ["train.parts=2", "rewards.bright.place=node"],
    "flat": ["train.prompts=4", "objective.minibatch=2", 'rewards.bright.kind="{reward}:flat"'],
    "pruned": ["train.parts=2", "rewards.bright.place=node", "plan.prune={at=[1],keep=[2],audit=2}", "train.updates=2"],
    "behaviour": BEHAVIOUR,
}


def write_recipe(folder, model):
    """The file of a recipe that trains a tiny pipeline, saved beside it: an adapter, or with ``-full`` all of it."""
    pipeline = model.removesuffix("-full")
    reward, prompts = folder / "reward.py", folder / "prompts.txt"
    reward.write_text(REWARD)
    prompts.write_text("".join(f"{'a ' * (number % 5)}cat {number}\n" for number in range(20)))
    base = folder / pipeline if (folder / pipeline).exists() else save(pipeline, folder)
    text = RECIPE.format(base=base, sampler=PIPELINES[pipeline], reward=reward, prompts=prompts)
    file = folder / f"{model}.toml"
    file.write_text(text if model == pipeline else text.replace("lora =", "# lora ="))
    return str(file)


def train_matrix(cases, folder, resumed=()):
    """Train cases, of a model, settings and a way to divide, on 1, 2 and 3 ranks; return a reader of the numbers.

    ``resumed`` are a case, a way and a number of ranks, with which its run on 2 ranks goes on from its checkpoint.
    """
    recipes = {model: write_recipe(folder, model) for model in dict.fromkeys(case[0] for case in cases)}

    def listed(model, case, shard, **more):
        sets = [item.replace("{reward}", str(folder / "reward.py")) for item in CASES[case]]
        return {"recipe": recipes[model], "sets": [*sets, f"processes.shard={shard}"], **more}

    many = {"-".join(case): listed(*case) for case in cases}
    again = {size: {} for size in (1, *SIZES)}
    for case, shard, size in resumed:
        name = "-".join(case)
        again[size][f"{name}-{shard}"] = listed(*case[:2], shard, resume=str(folder / "ranks" / f"{name}-2"))
    one = {"-".join(case[:2]): listed(*case[:2], "none") for case in cases}
    train_everywhere(many, (2,), folder / "ranks", wait_s=3600)
    train_everywhere(many | again[3], (3,), folder / "ranks", wait_s=3600)
    read = train_everywhere(one | again[1], (1,), folder / "ranks", wait_s=3600)
    return lambda *case, size: read("-".join(case if size > 1 or len(case) > 3 else case[:2]), size)


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


EVERYDAY = [
    ("sdxl", "flat", "base"),
    ("sd3", "pruned", "base"),
    ("flux-dev", "behaviour", "all"),
    ("sdxl-full", "pruned", "all"),
    ("sd3-full", "behaviour", "all"),
]
RESUMED = [
    (("sdxl", "flat", "base"), "none", 1),
    (("sd3", "pruned", "base"), "all", 3),
    (("sd3-full", "behaviour", "all"), "none", 1),
    (("sd3-full", "behaviour", "all"), "all", 3),
    (("sdxl-full", "pruned", "all"), "none", 3),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everyday")
    return train_matrix(EVERYDAY, folder, RESUMED), folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", EVERYDAY, ids="-".join)
def test_ranks_that_divide_a_network_compute_what_one_computes(results, case, size):
    check(results[0](*case, size=1), results[0](*case, size=size))


@pytest.mark.parametrize(("case", "shard", "size"), RESUMED)
def test_a_run_of_two_ranks_goes_on_with_any_number_of_them_in_any_way(results, case, shard, size):
    whole, rest = results[0](*case, size=1), results[0](*case, shard, size=size)
    assert 0 < len(rest["gradients"]) < len(whole["gradients"])
    assert largest(whole["weights"], rest["weights"]) <= 1e-5
    assert length(whole["weights"], rest["weights"]) < 0.1 * length(whole["weights"], rest["start"])


@pytest.mark.parametrize("case", EVERYDAY, ids="-".join)
def test_checkpoints_have_the_files_of_one_process_whatever_is_divided(results, case):
    runs = [results[1] / "ranks" / name for name in ("-".join(case[:2]) + "-1", "-".join(case) + "-2")]
    for file in ("model.safetensors", "training.safetensors"):
        (one, header), (many, other) = (read_weights(run / "checkpoints/000002" / file) for run in runs)
        assert header == other
        assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in many.items()}
        assert largest(one.values(), [many[name] for name in one]) <= 1e-5, file


@pytest.mark.parametrize("case", EVERYDAY, ids="-".join)
def test_a_stock_pipeline_loads_what_ranks_with_shares_have_saved(results, case):
    saved = read_weights(results[1] / "ranks" / ("-".join(case) + "-2") / "checkpoints/000003/model.safetensors")[0]
    pipe = stock(results[1] / case[0].removesuffix("-full"))
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    if case[0].endswith("-full"):
        network.load_state_dict(saved)
        return
    pipe.load_lora_weights(saved)
    loaded = {name: p for name, p in network.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(saved)
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in loaded.values())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_kind_of_rollout_on_every_pipeline_and_every_way_to_divide(tmp_path):
    full = [f"{pipeline}-full" for pipeline in PIPELINES]
    cases = [*itertools.product(PIPELINES, CASES, ("none", "base", "all"))]
    cases += itertools.product(full, CASES, ("none", "all"))
    results, failures = train_matrix(cases, tmp_path), []
    for case, size in itertools.product(cases, SIZES):
        try:
            check(results(*case, size=1), results(*case, size=size))
        except AssertionError as error:
            failures.append((case, size, str(error)[:200]))
    assert not failures


@pytest.mark.parametrize("size", SIZES)
def test_ranks_may_call_a_divided_network_in_any_order_and_unequally_often(size):
    every = run_ranks(size, "divided_network:programs", 8)
    assert all(frozen == 0 and trained < 1e-5 for frozen, trained, _ in every)
    assert len({calls for _, _, calls in every}) > 1


def test_ranks_open_in_turn_a_second_backward_pass_is_refused_and_a_rank_that_dies_is_lost_in_one_line():
    turns, second, message = run_ranks(2, "divided_network:mistakes")[0]
    assert turns[0][1] <= turns[1][0]  # of one machine's clock
    assert second.startswith("processes.shard: two backward passes")
    assert message.startswith("rank 0 waited")
    assert message.endswith("continue with --resume.")
    assert "\n" not in message


def test_what_cannot_be_divided_is_refused_in_a_line_before_weights_load(tmp_path):
    lora = write_recipe(tmp_path, "sd3")
    full = write_recipe(tmp_path, "sd3-full")
    refusals = [
        ("base", "model.base_precision", lora, ["model.base_precision=int8"]),
        ("all", "nf4", lora, ["model.base_precision=nf4"]),
        ("base", "model.frozen", lora, ['model.frozen=[{path="a.safetensors",name="a"}]']),
        ("base", "model.lora", full, []),
        ("all", "Muon", full, ["train.optimizer.kind=muon"]),
        ("all", "fp16", full, ["precision=fp16"]),
        ("base", "model.kind", "scenes/awm", []),
    ]
    for shard, reason, recipe, sets in refusals:
        with pytest.raises(ConfigError, match=f'processes.shard = "{shard}": .*{reason}') as error:
            open_recipe(recipe, "train", [*sets, f"processes.shard={shard}"])
        assert "\n" not in str(error.value)
    for shard, recipe in (("base", lora), ("all", lora), ("all", full)):
        assert open_recipe(recipe, "train", [f"processes.shard={shard}"])[1]["processes"]["shard"] == shard
