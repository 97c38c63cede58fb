"""Comparing methods: what runs, what is kept, what is not repeated, and what the page says."""

import concurrent.futures
import contextlib
import dataclasses
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny_runs
from grpaint.commands.compare import command as comparing
from grpaint.commands.compare import jobs
from grpaint.commands.compare.command import Comparison, parse_seeds
from grpaint.commands.compare.jobs import Contender, _own_files, read_record
from grpaint.commands.compare.record import RECORDED_SCORES
from grpaint.core.errors import ConfigError
from grpaint.recipe.config import RECIPES
from grpaint.report.method_summary import COSTS, seed_differences, summarise_methods
from grpaint.report.pages.comparison import comparison_page
from tiny_runs import command

pytestmark = pytest.mark.usefixtures("small_network")


class _Now(concurrent.futures.Executor):
    """Does at once what a pool of threads would do later: a run listens for signals, which threads cannot."""

    def __init__(self, workers):
        pass

    def submit(self, function, *args):
        done = concurrent.futures.Future()
        done.set_result(function(*args))
        return done


def _train(words, **options):
    """What the process of a run would do, here."""
    end = command(*words[words.index("train") :])
    return subprocess.CompletedProcess(words, end.code, end.out, end.err)


@contextlib.contextmanager
def runs_in_this_process():
    """Make the runs of a comparison here; the first test below leaves them to processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ThreadPoolExecutor", _Now)
        patch.setattr(jobs, "subprocess", SimpleNamespace(run=_train))
        yield


METHODS = ("flow-grpo-fast", "diffusion-nft")
SMALL = (
    "train.prompts=2",
    "train.group_size=3",
    "plan.steps=8",
    "model.start=random",
    "rewards={bright={kind='" + "FILE" + ":score'}}",
    "evaluate.prompts=6",
    "evaluate.steps=2",
    "evaluate.probe=6",
    "evaluate.guided=[1.5]",
    "anchor.batch=2",
    "precision=fp32",
    "device=cpu",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two methods, two seeds, made in two shards, and what each command said."""
    with tiny_runs.folder(tmp_path_factory.mktemp("compare")) as here, runs_in_this_process():
        sets = [item.replace("FILE", str(here / "reward.py")) for item in SMALL]
        words = ["compare", *METHODS, "--seeds", "0,1", "--budget-evaluations", "500", "--out", "out"]
        first = command(*words, "--shard", "1/2", sets=sets)
        assert first.code == 0, first.err
        half = sorted(path.name for path in (here / "out/runs").iterdir())
        second = command(*words, "--shard", "2/2", sets=sets)
        times = {path: path.stat().st_mtime_ns for path in (here / "out/runs").iterdir()}
        again = command(*words, sets=sets)
        assert {path: path.stat().st_mtime_ns for path in (here / "out/runs").iterdir()} == times
    return here, first, half, second, again, words, sets


def test_own_recipes_and_rewards_are_compared_until_their_files_change(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("mine.toml").write_text((RECIPES / "scenes/flow-grpo-fast.toml").read_text())
        sets = [item.replace("FILE", "reward.py") for item in SMALL]
        words = ["compare", "mine.toml", "low=mine.toml:train.learning_rate=1e-5", "--seeds", "0"]
        words += ["--budget-evaluations", "60", "--out", "out"]
        end = command(*words, sets=sets)
        assert (end.code, "2 of 2 runs" in end.out) == (0, True), end.err
        assert sorted(path.stem for path in Path("out/runs").iterdir()) == ["scenes-low-seed0", "scenes-mine-seed0"]
        Path("reward.py").write_text(Path("reward.py").read_text() + "# better\n")
        end = command(*words, sets=sets)
        assert end.code == 2
        assert "mine-seed0.json: made with other settings (budget, recipe, search or a file of your own)" in end.err


@pytest.mark.parametrize(
    "names", [{"kind": "my.py:f"}, {"kind": "worker", "reward": "my.py:f"}, {"a": [{"b": "my.py:f"}]}]
)
def test_an_own_file_counts_wherever_a_recipe_names_it(names, tmp_path):
    with tiny_runs.folder(tmp_path):
        Path("my.py").touch()
        assert _own_files({"rewards": {"mine": names, "other": {"kind": "none.py:f"}}, "seed": 3}) == [Path("my.py")]


def test_shards_make_the_whole_and_nothing_twice(made):
    here, first, half, second, again, *_ = made
    assert (first.code, second.code, again.code) == (0, 0, 0), (first.err, second.err, again.err)
    assert len(half) == 2
    assert "2 of 4 runs" in first.out
    assert "4 of 4 runs" in second.out
    assert "at once" not in again.out
    names = sorted(path.stem for path in (here / "out/runs").iterdir())
    assert names == sorted(f"scenes-{method}-seed{seed}" for method in METHODS for seed in (0, 1))
    assert all(path.stat().st_size < 60_000 for path in (here / "out/runs").iterdir())


def test_a_record_has_equal_cost_and_scores_over_it(made):
    here = made[0]
    records = json.loads((here / "out/comparison.json").read_text())
    assert {(record["method"], record["seed"]) for record in records} == {(m, s) for m in METHODS for s in (0, 1)}
    for record in records:
        costs = [line["evaluations"] for line in record["scores"]]
        assert costs == sorted(costs)
        assert costs[0] == 0
        assert 500 <= costs[-1] == record["evaluations"] < 700  # to the end of the iteration that uses it up
        assert record["cpu_s"] > 0
        assert record["settings"]["train"]["evaluations"] == 500
        assert record["base_guided"]["guidance"] == 1.5
        assert set(RECORDED_SCORES) | {"evaluations", "cpu_s", "reward_calls"} == record["scores"][-1].keys()


def test_records_of_other_settings_are_refused_by_name(made):
    here, *_, words, sets = made
    with tiny_runs.folder(here):
        end = command(*words, sets=[*sets, "train.learning_rate=1e-3"])
    assert end.code == 2
    assert "scenes-flow-grpo-fast-seed0.json" in end.err
    assert "other settings" in end.err


def test_the_page_is_whole_and_closed(made):
    text = (made[0] / "out/comparison.html").read_text()

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                assert name not in ("src", "href") or value.startswith(("data:", "#")), value

    Reader().feed(text)
    assert text.count("data:image/png") == 2
    charts = _page_data(text)["charts"]
    assert [chart["xLabel"] for chart in charts] == list(COSTS.values())
    for method in METHODS:
        assert f'<th scope="row">{method}</th>' in text
        for chart in charts:
            (series,) = (series for series in chart["series"] if series["label"] == method)
            assert series["x"][0] == 0
            assert len({len(series[key]) for key in ("x", "y", "low", "high")}) == 1


def _page_data(text):
    """What a page's scripts read."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_without_matplotlib_the_page_is_made_and_a_line_names_the_extra(made, monkeypatch):
    here, *_, words, sets = made
    plots = list((here / "out").glob("strict-by-*.svg"))
    assert len(plots) == 3
    for file in (*plots, here / "out/comparison.html"):
        file.unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with tiny_runs.folder(here):
        end = command(*words, sets=sets)
    assert (end.code, "4 of 4 runs" in end.out) == (0, True), end.err
    (line,) = (line for line in (end.out + end.err).splitlines() if "strict-by" in line)
    assert "pip install 'grpaint[report]'" in line
    assert (here / "out/comparison.html").is_file()
    assert not any(file.exists() for file in plots)


def test_a_dry_run_prints_the_runs_and_starts_none(tmp_path):
    with tiny_runs.folder(tmp_path):
        end = command("compare", *METHODS, "--seeds", "0,1,2", "--budget-evaluations", "1000", "--search", "--dry-run")
        assert not Path("comparison").exists()
    assert end.code == 0
    assert "6 runs, 1,500 model evaluations" in end.out  # three rates each, at a quarter
    assert "6 runs, 6,000 model evaluations" in end.out
    assert re.search(r"flow-grpo-fast: an iteration takes up to [\d,]+ of 1,000 model evaluations", end.out + end.err)


@pytest.mark.parametrize(("processes", "at_once"), [((), None), (("--processes", "3"), 3), (("--processes", "9"), 4)])
def test_as_many_runs_at_a_time_as_there_are_processes(processes, at_once, tmp_path, monkeypatch):
    workers = []
    monkeypatch.setattr(comparing, "run_jobs", lambda jobs, work, log, count: workers.append(count))
    with tiny_runs.folder(tmp_path):
        end = command("compare", *METHODS, "--seeds", "0,1", "--budget-evaluations", "60", *processes)
    assert end.code == 0, end.err
    assert workers == [int(processes[1]) if processes else comparing.WORKERS]
    assert f"4 runs, {at_once or min(comparing.WORKERS, 4)} at once" in end.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flow-grpo-fats", "--budget-evaluations", "9"], "flow-grpo-fast"),
        (["sft", "--budget-evaluations", "9"], "grpaint sft"),
        (["flow-grpo-fast"], "--budget-evaluations or --budget-minutes"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--budget-minutes", "1"], "one of them"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--seeds", "0,x"], "--seeds"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--seeds", "1,1"], "each once"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--seeds", "0,²"], "--seeds 0,²: whole numbers"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--seeds", "9" * 5000], "whole numbers from 0"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--shard", "1/²", "--dry-run"], "--shard 1/²: write it"),
        (["flow-grpo-fast", "--budget-minutes", "inf"], "--budget-minutes inf: at most"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--shard", "3/2", "--dry-run"], "--shard 3/2"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--baseline", "ddpo"], "not among"),
        (["flow-grpo-fast", "--budget-evaluations", "9", "--only", "ddpo"], "not among"),
        (["flow-grpo-fast", "flow-grpo-fast", "--budget-evaluations", "9"], "named twice"),
        (["short=flow-grpo-fast", "--budget-evaluations", "9"], "NAME=METHOD:KEY=VALUE"),
        (["short=flow-grpo-fast:plan.stops=4", "--budget-evaluations", "9"], "plan.stops: no such setting"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path):
    with tiny_runs.folder(tmp_path):
        end = command("compare", *words)
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert message in end.err


def test_a_setting_decides_how_often_runs_are_evaluated(tmp_path):
    contenders = (Contender.parse("awm"), Contender.parse("rare=awm:evaluate.every=50"))
    comparison = Comparison(contenders, "scenes", (0,), 100_000, 0.0, tmp_path)
    assert [job.open()[0].evaluate.every for job in comparison.runs()] == [7, 50]  # 1,584 evaluations an iteration
    rare = dataclasses.replace(comparison, sets=("evaluate.every=60",))
    assert [job.open()[0].evaluate.every for job in rare.runs()] == [60, 50]
    assert {job.open()[0].evaluate.every for job in rare.search()} == {1_000_000}


def test_the_search_decides_the_settings_of_the_runs(tmp_path):
    twice = ("train.updates=2",)
    comparison = Comparison((Contender.parse("flow-grpo-fast"),), "scenes", (0,), 1000, 0.0, tmp_path, twice)
    rates = comparison.search()
    assert len(rates) == 6
    assert len(dataclasses.replace(comparison, sets=()).search()) == 3  # with one update no clip range ever binds
    assert {job.seed for job in rates} == {100}
    judged = {job.open()[0].evaluate.seed for job in rates}
    assert judged.isdisjoint({job.open()[0].evaluate.seed for job in comparison.runs()})  # never on reported prompts
    assert {job.seed for job in dataclasses.replace(comparison, seeds=(100, 101, 3)).search()} == {102}
    assert {job.evaluations for job in rates} == {250}
    plain = comparison.runs()[0]
    for place, job in enumerate(rates):
        job.record.parent.mkdir(exist_ok=True)
        record = _record(job.contender.name, 100, [0.9 if place == 4 else 0.5])
        job.record.write_text(json.dumps(record | {"fingerprint": job.fingerprint()}))
    chosen = comparison.runs()[0]
    assert chosen.fingerprint() != plain.fingerprint()
    assert chosen.open()[0].train.learning_rate == rates[4].open()[0].train.learning_rate
    rates[0].record.unlink()
    assert comparison.runs()[0].fingerprint() == plain.fingerprint()  # an unfinished search decides nothing


def test_minutes_become_evaluations_by_a_calibration(made):
    here, *_, sets = made
    with tiny_runs.folder(here), runs_in_this_process():
        words = ["compare", "flow-grpo-fast", "--seeds", "0", "--budget-minutes", "0.01", "--out", "timed"]
        end = command(*words, sets=sets)
        assert end.code == 0, end.err
        rate = json.loads(Path("timed/calibration/scenes-flow-grpo-fast.json").read_text())
        run = json.loads(Path("timed/runs/scenes-flow-grpo-fast-seed0.json").read_text())
    budget = run["settings"]["train"]["evaluations"]
    assert budget == round(0.6 * rate["evaluations"] / rate["cpu_s"])
    assert budget <= run["evaluations"] < budget + 200


def test_a_variant_is_a_recipe_under_a_name_of_its_own(tmp_path):
    contenders = Contender.parse("pro-grpo"), Contender.parse("early=pro-grpo:plan.prune.at=[2,4];train.prompts=3")
    plain, early = Comparison(contenders, "scenes", (0,), 1000, 0.0, tmp_path).runs()
    assert early.name == "scenes-early-seed0"
    assert plain.open()[0].plan.prune.at == (5, 7)
    assert early.open()[0].plan.prune.at == (2, 4)
    assert early.open()[0].train.prompts == 3
    assert plain.fingerprint() != early.fingerprint()


def _record(method, seed, strict):
    scores = [
        {"strict": value, "soft": 0.8, "background": 0.01, "patch_energy": 1e-5, "denoising_loss": 0.03}
        | {"iteration": at, "evaluations": 1000 * at, "cpu_s": 1.0 * at, "reward_calls": 10 * at}
        for at, value in enumerate(strict)
    ]
    whose = {"method": method, "world": "scenes", "seed": seed, "pictures": ""}
    return whose | {"scores": scores, "evaluations": 1000, "cpu_s": 1.0, "base_guided": None}


DAMAGE = {
    "method": lambda record: record.update(method=["flow-grpo-fast"]),
    "seed": lambda record: record.pop("seed"),
    "cpu_s": lambda record: record.update(cpu_s="1"),
    "evaluations": lambda record: record.update(evaluations=True),
    "pictures": lambda record: record.update(pictures='"><script>'),
    "scores": lambda record: record.update(scores=[]),
    "scores[0].strict": lambda record: record["scores"][0].update(strict=float("nan")),
    "scores[0].reward_calls": lambda record: record["scores"][0].pop("reward_calls"),
    "scores[0].score": lambda record: record["scores"][0].update(score="soft"),
    "base_guided": lambda record: record.update(base_guided={"guidance": 1.5}),
}


@pytest.mark.parametrize("value", DAMAGE)
def test_a_damaged_record_is_told_with_the_value_that_no_run_writes(value, tmp_path):
    job = Comparison((Contender.parse("flow-grpo-fast"),), "scenes", (0,), 1000, 0.0, tmp_path).runs()[0]
    job.record.parent.mkdir()
    record = _record("flow-grpo-fast", 0, [0.4, 0.5]) | {"fingerprint": job.fingerprint()}
    job.record.write_text(json.dumps(record))
    assert read_record(job) == record
    DAMAGE[value](record)
    job.record.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=re.escape(f"damaged: {value} is not what a run records. Remove it")):
        read_record(job)


def test_methods_are_paired_by_seed_and_ordered_by_score():
    records = [_record("a", seed, [0.4, 0.5 + seed / 10]) for seed in (0, 1)]
    records += [_record("b", seed, [0.4, 0.7]) for seed in (1, 2)]
    b, a = summarise_methods(records)
    assert (a.method, b.method) == ("a", "b")
    assert seed_differences(b, a) == [pytest.approx(0.1)]
    assert a.cost_to(0.6, "evaluations") == [None, 1000]
    text = comparison_page(records, title="t", baseline="a", missing=["scenes-a-seed2"])
    assert "scenes-a-seed2" in text
    assert "+10.0" in text
    curve = a.curve("evaluations")
    assert (curve.cost, curve.mean) == ([0, 1000], [0.4, pytest.approx(0.55)])
    assert curve.low[1] < 0.5 < 0.6 < curve.high[1]
    assert "No run has finished yet." in comparison_page([], title="t", baseline="a", missing=["scenes-a-seed2"])


def test_seeds_are_read_strictly():
    assert parse_seeds("0, 2,7") == (0, 2, 7)
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds("")


@pytest.mark.parametrize("code", [130, -2])
def test_ctrl_c_that_reaches_a_run_alone_ends_the_comparison(tmp_path, monkeypatch, code):
    ended = subprocess.CompletedProcess([], code, "", "")
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(run=lambda *_, **__: ended))
    words = (
        "compare",
        "flow-grpo-fast",
        "--seeds",
        "0",
        "--budget-evaluations",
        "9000",
        "--out",
        str(tmp_path / "out"),
    )
    end = command(*words)
    assert (end.code, "stopped at once" in end.err) == (130, True)
