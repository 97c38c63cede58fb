"""Commands besides training, of a network that ranks divide: they end, and compute what one process computes."""

import contextlib

import pytest
from divided_commands import carry_out
from ranks import run_ranks
from test_judge import check_close
from test_sharding import CASES, write_recipe

from grpaint.parallel.world import ONE
from tiny_runs import command, flags

WAYS = [("sd3", "base"), pytest.param(("sd3-full", "all"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WAYS, ids=["sd3-base", "sd3-full-all"])
def results(request, tmp_path_factory):
    """The way to divide, and what one process and two compute of a run of two iterations."""
    model, shard = request.param
    folder = tmp_path_factory.mktemp(model)
    recipe = write_recipe(folder, model)
    sets = ["train.iterations=2", "evaluate.pictures=0", "train.learning_rate=0.01"]
    with contextlib.chdir(folder):
        end = command("train", recipe, "--name", "it", *flags(*CASES["behaviour"], *sets))
    assert end.code == 0, end.err
    words = (str(folder / "runs/it"), recipe)
    one = carry_out(ONE, *words, "none", str(folder / "one"))
    return shard, one, run_ranks(2, "divided_commands:carry_out", *words, shard, str(folder / "two"))


def test_an_evaluation_of_a_divided_network_is_that_of_one_process(results):
    _, one, two = results
    check_close(one["line"], two[0]["line"], "evaluation", 1e-5)
    assert {every["weights"] for every in two} == {one["weights"]}


def test_a_comparison_of_a_divided_network_with_its_base_is_that_of_one_process(results):
    _, one, two = results
    check_close(one["compared"], two[0]["compared"], "comparison", 5e-3)  # a pixel may round at a level's edge
    weights = [model["weights"] for model in two[0]["compared"]["sources"].values()]
    assert len(set(weights)) == 2


def test_a_scan_with_a_divided_network_is_that_of_one_process(results):
    _, one, two = results
    for every in two:
        check_close(one["scan"], every["scan"], "scan", 1e-5)


def test_doctor_compares_ranks_that_divide_a_base_with_one_and_refuses_shares_of_trained_weights(results):
    shard, _, two = results
    if shard == "all":
        assert two[0]["doctor"] == two[1]["doctor"]
        assert two[0]["doctor"].startswith('processes.shard = "all": doctor trains in one process first')
        assert "\n" not in two[0]["doctor"]
        return
    (left_out, verdict, _), *compared = two[0]["doctor"]
    assert (left_out, verdict) == ("the checks of one process", None)
    assert len(compared) == 6
    assert all(passed for _, passed, _ in compared), compared


@pytest.mark.parametrize(("model", "shard"), [("sd3", "base"), ("sd3", "all"), ("sd3-full", "all")])
def test_show_prints_how_the_rows_are_divided_whatever_the_network_is(tmp_path, model, shard):
    recipe = write_recipe(tmp_path, model)
    whole, divided = (
        command("show", recipe, "--processes", "2", "--set", f"processes.shard={way}") for way in ("none", shard)
    )
    assert divided.code == whole.code == 0
    assert divided.out.split("rows of each process")[1] == whole.out.split("rows of each process")[1]
