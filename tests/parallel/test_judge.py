"""Processes that divide an evaluation return the line of one process, each the whole of it."""

import time
from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from grpaint.backends.scenes import Scenes
from grpaint.core.errors import RankLost, RunError
from grpaint.core.policy import Prompt
from grpaint.core.runtime import Runtime
from grpaint.judge import best_guided, denoising_loss, evaluate
from grpaint.learn.node_rewards import Sharing
from grpaint.learn.table import RewardSet
from grpaint.recipe.settings import Evaluation
from grpaint.rewards.jpeg import Jpeg
from grpaint.scenes.world import SceneData

SETTINGS = Evaluation(prompts=5, probe=5, steps=3, guided=(1.5, 2.0))
SIZES = 2, 3


def lines(world):
    """Judge both kinds of model in several ways, and count the images that this process drew."""
    results = {}
    for kind in ("velocity", "epsilon"):
        policy, data = Scenes(parametrisation=kind).load(Runtime("cpu", "fp32")), SceneData()
        rewards = RewardSet({"small": Jpeg()}, {"small": 0.5})
        drawn, decode = [], policy.decode

        def decode_and_count(latents, decode=decode, drawn=drawn):
            drawn.append(len(latents))
            return decode(latents)

        policy.decode = decode_and_count
        results[kind] = evaluate(policy, data, SETTINGS, rewards=rewards, world=world)
        results[f"{kind}, drawn"] = sum(drawn)
        hybrid = replace(SETTINGS, guidance=2.0, tuned_share=0.5)
        results[f"{kind}, half of the steps"] = evaluate(policy, data, hybrid, probe=False, world=world)
        results[f"{kind}, base"] = best_guided(policy, data, SETTINGS, rewards, world)
        drawn.clear()
        results[f"{kind}, one prompt"] = evaluate(policy, data, replace(SETTINGS, prompts=1, probe=1), world=world)
        results[f"{kind}, one prompt, drawn"] = sum(drawn)
        results[f"{kind}, probe"] = denoising_loss(policy, data, SETTINGS, "current", world)

        def decode_nan_of_last(latents, decode=decode):
            return decode(latents) * (float("nan") if world.rank == world.size - 1 else 1.0)

        policy.decode = decode_nan_of_last
        try:
            evaluate(policy, data, SETTINGS, world=world)
        except RunError as error:
            results[f"{kind}, error"] = str(error)
        results[f"{kind}, exchanges"] = len(world.gather_values("still in step"))
    return results


@pytest.fixture(scope="module")
def results():
    return {size: run_ranks(size, "test_judge:lines") for size in (1, *SIZES)}


def check_close(one, many, path, tolerance):
    """Equal, or numbers within the tolerance, with the keys of tables in the same order."""
    if isinstance(one, dict):
        assert list(one) == list(many), path
        for name, value in one.items():
            check_close(value, many[name], f"{path}/{name}", tolerance)
    elif isinstance(one, list):
        assert len(one) == len(many), path
        for row, value in enumerate(one):
            check_close(value, many[row], f"{path}/{row}", tolerance)
    elif isinstance(one, float):
        assert many == pytest.approx(one, rel=tolerance, abs=tolerance), path
    else:
        assert one == many, path


CASES = ["{}", "{}, half of the steps", "{}, base", "{}, one prompt", "{}, probe"]


@pytest.mark.parametrize("kind", ["velocity", "epsilon"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_the_line_of_many_processes_is_that_of_one(results, size, kind, case):
    name = case.format(kind)
    # the whole network rounds by the size of its batch; guidance amplifies it, by 3e-5 in one pixel of these images
    guided = case.endswith((" steps", " base"))
    check_close(results[1][0][name], results[size][0][name], name, 1e-5 if guided else 1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_every_process_returns_the_same_line(results, size):
    for other in results[size][1:]:
        for case in CASES:
            for kind in ("velocity", "epsilon"):
                assert other[case.format(kind)] == results[size][0][case.format(kind)]


@pytest.mark.parametrize("size", SIZES)
def test_each_process_draws_its_share_and_none_without_one(results, size):
    assert [rank["velocity, drawn"] for rank in results[size]] == ([3, 2] if size == 2 else [2, 2, 1])
    assert [rank["velocity, one prompt, drawn"] for rank in results[size]] == [1, *[0] * (size - 1)]


@pytest.mark.parametrize("size", SIZES)
def test_an_image_that_is_not_finite_ends_the_evaluation_on_every_process(results, size):
    bad = {2: 2, 3: 1}[size]
    for rank in results[size]:
        assert rank["velocity, error"] == rank["epsilon, error"]
        assert rank["velocity, error"].startswith(f"{bad} of 5 images of an evaluation contain NaN")
        assert rank["velocity, exchanges"] == size


def exchanges(world):
    """What a group gathers and sums, also of nothing."""
    rank = world.rank
    uneven = {"last": torch.arange(rank * 10, rank * 10 + rank), "first": torch.full((1, 2), rank) > 0}
    table = world.gather(uneven if rank else {})
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), rank + 1.0)
    if rank:
        parameters[1].grad = torch.ones(2)
    world.sum_gradients(parameters)
    world.sum_gradients([])
    result = {
        "table": [[name, tensor.tolist(), str(tensor.dtype)] for name, tensor in table.items()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "any": [world.any(rank == world.size - 1), world.any(False)],
        "first": world.from_first({"rank": rank}),
        "on the first": [[value, tensor.tolist()] for value, tensor in messages(world, rank)],
        "shared": scores_of_shared_rewards(world),
        "from the first": world.scatter_on_node([] if rank else [([n], {}) for n in range(world.size)])[0],
    }
    world.limit(1)
    if not rank:
        time.sleep(4)  # longer than the others wait, and than they look who is late
        return result
    try:
        world.gather_on_node(({}, {}))
        world.scatter_on_node([])
    except RankLost as error:
        return result | {"late": str(error)}


def messages(world, rank):
    """The numbers, and rows of that many, that the ranks send to the first of them."""
    return [(value, tensors["rows"]) for value, tensors in world.gather_on_node((rank, {"rows": torch.ones(rank, 2)}))]


@pytest.fixture(scope="module")
def exchanged():
    return run_ranks(3, "test_judge:exchanges")


def test_a_group_gathers_rows_of_any_number_and_sums_gradients(exchanged):
    every = [{name: value for name, value in rank.items() if name not in ("shared", "late")} for rank in exchanged]
    of_nodes = [[rank.pop("on the first"), rank.pop("from the first")] for rank in every]
    assert of_nodes == [[[[0, []], [1, [[1, 1]]], [2, [[1, 1], [1, 1]]]], [0]], [[], [1]], [[], [2]]]
    assert every[0] == every[1] == every[2]
    assert every[0] == {
        "table": [
            ["last", [10, 20, 21], "torch.int64"],
            ["first", [[True, True], [True, True]], "torch.bool"],
        ],
        "gradients": [[6.0, 6.0], [2.0, 2.0], None],
        "any": [True, False],
        "first": {"rank": 0},
    }


def test_a_late_first_rank_is_named_by_the_others_of_its_machine(exchanged):
    assert "late" not in exchanged[0]
    for rank in (1, 2):
        assert exchanged[rank]["late"].startswith(
            f"rank {rank} waited 1 s in the phase start for rank 0 (node 0), last in"
        )


PHASES = [1, 2, 0], [0, 2, 1], [0, 0, 0]  # how often each rank scores


def scores_of_shared_rewards(world):
    """What ranks that score unequally often get by a reward of each and by one that they share, and how many it saw."""
    seen = []

    def count_and_mean(images, prompts):
        seen.append(len(images))
        return images.mean((1, 2, 3)) + torch.tensor([sum(prompt.metadata["what"]) for prompt in prompts])

    def fail(images, prompts):
        raise AssertionError

    prompts = [Prompt(str(n), {"what": {n}}) for n in range(4)]  # JSON holds no set
    rewards = {"own": lambda images, _: images.amax((1, 2, 3)), "shared": fail if world.rank else count_and_mean}
    phases = []
    for calls in PHASES:
        among = RewardSet(rewards, {}, Sharing(frozenset({"shared"}))).among(world, prompts)
        tables = []
        for call in range(calls[world.rank]):
            rows = [prompts[world.rank + call]] * (1 + world.rank)
            images = torch.full((len(rows), 3, 2, 2), world.rank + call / 4, dtype=torch.bfloat16)
            tables.append(among.score(images, rows))
        among.finish()
        phases.append([{name: column.tolist() for name, column in table.columns.items()} for table in tables])
    return {"phases": phases, "seen": seen}


def test_ranks_of_a_machine_share_a_reward_however_often_each_scores(exchanged):
    every = [rank["shared"] for rank in exchanged]
    assert [rank["seen"] for rank in every] == [[1, 2, 2, 2, 3, 2], [], []]  # a rank's images are a call of their own
    for number, rank in enumerate(every):
        for calls, tables in zip(PHASES, rank["phases"], strict=True):
            assert len(tables) == calls[number]
            for call, table in enumerate(tables):
                mean = number + call / 4
                assert table == {"own": [mean] * (1 + number), "shared": [mean + number + call] * (1 + number)}
