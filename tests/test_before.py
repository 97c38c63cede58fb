"""A run of an earlier version (``before/README.md``) opens, goes on as it would have, and is exported."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpaint.run.saved import open_model
from grpaint.storage.files import read_weights
from tiny_runs import command, status, timeless, without_caption_warnings

RUN = Path(__file__).parent / "before/lora-run"
IT = Path("runs/it")


@pytest.fixture(autouse=True)
def _copy(tmp_path: Path) -> Iterator[None]:
    """Work beside a copy, whose run.toml names its base and its reward by relative paths."""
    for name in ("base", "reward.py"):
        (shutil.copytree if (RUN / name).is_dir() else shutil.copy)(RUN / name, tmp_path / name)
    shutil.copytree(RUN / "it", tmp_path / IT)
    with contextlib.chdir(tmp_path):
        yield


def assert_close(one: Any, other: Any) -> None:
    """Compare recorded values, numbers to within 1e-5.

    On the processor that made the run they are equal bit for bit; another one's vector instructions add up in another
    order, which changes the last digits of a 32-bit number.
    """
    if isinstance(other, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(other, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    else:
        assert one == (pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(other, float) else other)


def test_an_old_run_resumes_to_the_recorded_lines() -> None:
    assert "optimizer0/0.exp_avg" in read_weights(IT / "checkpoints/000003/training.safetensors")[0]  # the old form
    end = command("train", "--name", "it", "--resume")
    assert (end.code, without_caption_warnings(end.err)) == (0, "")
    assert status(IT)["status"] == "finished"
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        before, after = timeless(RUN / "it" / name), timeless(RUN / "continuation" / name)
        assert_close(timeless(IT / name), before + after)
    state = read_weights(IT / "checkpoints/000005/training.safetensors")[0]
    assert not any(name.startswith("optimizer0") for name in state)
    averages = {name.replace("current/", "optimizer.0/") + ".exp_avg" for name in state if "current/" in name}
    assert averages <= state.keys()
    weights, header = read_weights(IT / "checkpoints/000005")
    recorded, its_header = read_weights(RUN / "continuation")
    assert header == its_header
    assert weights.keys() == recorded.keys()
    start = read_weights(RUN / "it/checkpoints/000003")[0]
    assert any((start[name] - tensor).abs().max() > 1e-4 for name, tensor in recorded.items())
    for name, tensor in recorded.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)


def test_it_is_opened_and_draws() -> None:
    policy, recipe = open_model("it")
    stored = read_weights(RUN / "it/checkpoints/000003/training.safetensors")[0]
    for name, tensor in policy.weights.trainable.items():
        assert torch.equal(tensor, stored[f"average/{name}"])
    assert recipe.model.lora.rank == 2
    drawn = command("sample", "it", "a red circle")
    assert (drawn.code, drawn.err) == (0, "")
    assert Path(drawn.out.strip()).is_file()


@pytest.mark.parametrize("target", ["diffusers", "comfyui", "merged"])
def test_it_is_exported(target: str) -> None:
    end = command("export", "it", "--for", target, "--out", "out")
    assert end.code == 0, end.err
    assert "reloaded: latents differ by" in end.out
