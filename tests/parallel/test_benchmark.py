"""benchmarks/processes.py: its arithmetic, and that it runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks/processes.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("processes", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    del sys.modules[spec.name]
    return module


def test_time_until_the_last_rank_has_come_is_waiting(benchmark):
    early = benchmark.Timed([10.0, 20.0], [[], [(11.0, 14.0, 8), (15.0, 18.0, 800)]], 1.0, 1.0)
    late = benchmark.Timed([10.0, 20.0], [[], [(13.0, 14.0, 8), (15.0, 18.0, 800)]], 1.0, 1.0)
    share = benchmark.exchanged([early, late])
    assert share == benchmark.Exchanged(waiting=2 / 20, exchanging=8 / 20, largest=800, others=8, count=2)


def test_only_iterations_during_which_all_trained_are_timed(benchmark):
    one = benchmark.Timed([0.0, 5.0, 6.0, 13.0], [], 1.0, 1.0)
    other = benchmark.Timed([5.0, 6.0, 8.0], [], 1.0, 1.0)
    assert benchmark.seconds([one, other]) == 1.0  # of 1, 1 and 2; without that of 5, 1, 7, 1 and 2


def test_a_ring_carries_each_byte_nearly_twice(benchmark):
    size = 2 * 25e9 / 8  # two seconds of the link
    assert benchmark.ring(size, 1, 25) == 0
    assert benchmark.ring(size, 64, 25) == pytest.approx(2 * 63 / 64 * 2 + 126 * benchmark.LATENCY)
    assert benchmark.ring(size, benchmark.NODE, 25) == benchmark.ring(size, benchmark.NODE, 400)


@pytest.mark.slow
def test_it_runs_and_marks_what_it_predicts():
    done = subprocess.run([sys.executable, str(FILE), "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured, predicted = done.stdout.split("PREDICTED, NOT MEASURED")
    works = re.findall(r"^  (?:together|apart|alone) .* (\d+) model evaluations$", measured, re.M)
    assert len(works) == 3
    assert all(4 * 6 * 6 < int(work) <= 252 for work in works)  # more than the rollout's of 6 steps
    assert "9.19 MB in the largest" in measured
    assert "2241 M trainable numbers" in predicted
    for row in re.findall(r"^    \d+ Gbit/s (.*)$", predicted, re.M):
        cells = list(map(float, row.split()))
        assert cells == sorted(cells, reverse=True)
        assert cells[0] == 1 > cells[-1] > 0.5
