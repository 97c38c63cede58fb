"""How an iteration is divided among processes, computed without starting any."""

import pytest

from grpaint.core.errors import ConfigError
from grpaint.parallel.world import World
from grpaint.recipe.config import open_recipe
from grpaint.run.shares import divide_rows, own_samples


def _train(method, prompts, group):
    return open_recipe(method, "train", [f"train.prompts={prompts}", f"train.group_size={group}"])[0]


@pytest.mark.parametrize(
    ("prompts", "group", "processes", "rows"),
    [
        (5, 4, 1, [20]),
        (5, 4, 2, [12, 8]),
        (5, 4, 5, [4, 4, 4, 4, 4]),
        (5, 4, 7, [3, 3, 3, 3, 3, 3, 2]),  # fewer prompts than processes: single samples
    ],
)
def test_rows_are_those_that_each_rank_draws(prompts, group, processes, rows):
    recipe = _train("flow-grpo-fast", prompts, group)
    division = divide_rows(recipe, processes)
    assert (division["count"], division["rows"]) == (processes, rows)
    assert division["imbalance"] == pytest.approx(max(rows) / (sum(rows) / processes), abs=1e-4)
    drawn = []
    for rank in range(processes):
        world = World()
        world.size, world.rank = processes, rank
        drawn.append(own_samples(recipe, prompts, world).tolist())
    assert [len(numbers) for numbers in drawn] == rows
    assert [number for numbers in drawn for number in numbers] == [*range(prompts * group)]


def test_images_of_the_supervised_stage_are_divided_singly():
    recipe, _ = open_recipe("sft", "sft", ["train.batch=7"])
    assert divide_rows(recipe, 3)["rows"] == [3, 2, 2]


def test_more_processes_than_shares_are_refused_as_in_a_run():
    assert divide_rows(_train("pro-grpo", 3, 24), 3)["rows"] == [24, 24, 24]
    with pytest.raises(ConfigError, match=r"train\.prompts = 3, and groups are compared .* start at most 3"):
        divide_rows(_train("pro-grpo", 3, 24), 4)
    with pytest.raises(ConfigError, match=r"train\.batch = 7: too few for 8 processes"):
        divide_rows(open_recipe("sft", "sft", ["train.batch=7"])[0], 8)
