"""Ranks that open one base take little more of the host's memory together than one process."""

from pathlib import Path

import pytest
from rank_memory import BENCHMARK
from ranks import run_ranks

from grpaint.backends.synthetic.pipelines import save
from grpaint.recipe.config import override

MOST = 1.3  # of what one process takes


def opened(table, size, sets):
    """The bytes that ``size`` ranks need together to open a model and to read its network once."""
    return run_ranks(size, "loading_memory:highest_while_loading", override(table, sets), wait_s=1800)[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="shared pages are counted from /proc")
def test_ranks_that_open_one_base_take_little_more_memory_than_one_process(tmp_path, monkeypatch):
    for name, value in BENCHMARK["MALLOC"].items():  # large blocks are given back when they are freed
        monkeypatch.setenv(name, value)
    base = save("xl-small", tmp_path / "base")
    lora = override(BENCHMARK["table"](base, "xl-small", 64), ["precision=fp32", "threads=1"])
    whole = {**lora, "model": {key: value for key, value in lora["model"].items() if key != "lora"}}
    shares = {}
    for name, table, sets, ways in (
        ("adapter", lora, [], ("none", "base")),
        ("adapter, files of another precision", lora, ["precision=bf16"], ("base",)),
        ("whole network", whole, [], ("all",)),
    ):
        one = opened(table, 1, sets)
        for shard in ways:
            two = opened(table, 2, [*sets, f"processes.shard={shard}"])
            shares[name, shard] = two / one
    assert all(share <= MOST for share in shares.values()), shares
