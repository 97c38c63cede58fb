"""The memory of ranks that divide a network is near the plan, and lower than that of ranks that do not."""

from pathlib import Path

import pytest
from rank_memory import BENCHMARK
from ranks import run_ranks

from grpaint.backends.synthetic.pipelines import save
from grpaint.commands.estimate.ranks import forecast_ranks
from grpaint.recipe.config import override

SETS = [
    *("precision=fp32", "threads=1", "train.prompts=3", "train.group_size=2", "plan.steps=2", "plan.window.size=1"),
    *("plan.window.high=0", "evaluate.prompts=1", "evaluate.steps=1", "model.tokens=77", "model.checkpointing=false"),
    *("model.batch=2", "objective.minibatch=2"),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a process's own peak is read from /proc")
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_divides_the_base_needs_what_the_plan_says(tmp_path, monkeypatch, ranks):
    for name, value in BENCHMARK["MALLOC"].items():  # large blocks are given back when they are freed
        monkeypatch.setenv(name, value)
    base = save("sd3-small", tmp_path / "base")
    captions = (f"{number} large red circles above a small blue square\n" for number in range(99))
    (base / "prompts.txt").write_text("".join(captions))
    table = override(BENCHMARK["table"](base, "sd3-small", 128), SETS)
    plan, highest = forecast_ranks(table, "train", "cpu", ranks, 1), {}
    for way in plan.ways:
        every = run_ranks(ranks, "rank_memory:measured", override(table, [f"processes.shard={way.shard}"]), wait_s=1800)
        for phase in ("rollout", "update"):
            highest[way.shard, phase] = max(peaks[phase] for peaks in every)
            assert 0.85 <= highest[way.shard, phase] / way.peaks[phase] <= 1.15, (way.shard, phase)
