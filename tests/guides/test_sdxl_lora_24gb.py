"""The guide of an evening: its commands, read from it, end to end on stand-ins; and the memory that it predicts."""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_ins
import torch
from safetensors.torch import load_file

from grpaint.backends.synthetic.pipelines import save_settings
from tiny_runs import Ended, command, lines

GUIDE = stand_ins.GUIDE.read_text(encoding="utf-8")


@contextlib.contextmanager
def interrupted_after_a_line(metrics: Path) -> Iterator[None]:
    """Ctrl-C as soon as a run has written a line of its metrics."""
    ended = threading.Event()

    def press() -> None:
        while not ended.wait(0.01):
            if metrics.is_file() and metrics.read_bytes():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run(words: list[str]) -> Ended:
    """A command; the first training of the second stage is stopped by Ctrl-C, as the guide says it may be."""
    with contextlib.ExitStack() as stack:
        if words == ["train", "grpo.toml", "--name", "evening"]:
            stack.enter_context(interrupted_after_a_line(Path("runs/evening/metrics.jsonl")))
        return command(*(word.replace("000020", "000002") for word in words))


def test_the_commands_of_the_guide_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    evening = tmp_path / "evening"
    stand_ins.make(evening)
    ends: dict[str, Ended] = {}
    with contextlib.chdir(evening):
        for words in stand_ins.commands():
            end = ends[" ".join(words)] = run(words)
            assert end.code == (130 if words[-2:] == ["--name", "evening"] else 0), f"{words}: {end.err}{end.out}"
    assert len(ends) == len(stand_ins.commands()) >= 15

    survey = ends["data scan sft.toml --sheet sheet.png"].out
    for line in re.findall(r"^(?:pictures: |  left out: |buckets |captions |  the same bytes: ).*", GUIDE, re.M):
        assert line in survey
    assert "stopped by SIGINT after saving; continue with --resume" in ends["train grpo.toml --name evening"].err
    assert "FAIL" not in ends["doctor grpo.toml --set model.start="].out
    assert "22.35 GiB: fits\n" in ends["plan sft.toml --gpu 24GB"].out
    assert re.search(
        r"^time: .* s an iteration ", ends["plan grpo.toml --gpu 24GB --calibrate --set model.start="].out, re.M
    )

    losses = [line["denoising_loss"] for line in lines(evening / "runs/evening-sft/evaluations.jsonl")]
    assert losses[-1] < losses[0]
    resumed = ends["train grpo.toml --name evening --resume"].out
    assert re.search(r"^ +4/4  pick \S+  aesthetic \S+  clip \S+  held-out reward \S+  \d+ s$", resumed, re.M)
    measured = lines(evening / "runs/evening/metrics.jsonl")
    assert [line["iteration"] for line in measured] == [1, 2, 3, 4]
    assert all({"reward/pick", "reward/aesthetic", "reward/clip"} <= line.keys() for line in measured)
    assert all(line["advantage/share/clip"] == 0 for line in measured)
    for name in ("reward/aesthetic", "reward/pick", "reward/clip", "denoising_loss"):
        assert name in ends["evaluate base=runs/evening-sft:base sft=runs/evening-sft tuned=runs/evening"].out
    for page in ("runs/evening-sft/report.html", "runs/evening/report.html", "evaluation/evaluation.html"):
        assert (evening / page).is_file()

    files = sorted((evening / "exports").glob("*/pytorch_lora_weights.safetensors"))
    assert [file.parent.name for file in files] == ["evening-20", "evening-comfyui", "evening-sft-comfyui"]
    adapters = [load_file(file) for file in files]
    for adapter in adapters:
        assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", key) for key in adapter)
    ups = [torch.cat([adapter[key].flatten() for key in sorted(adapter) if "lora_up" in key]) for adapter in adapters]
    assert not any(torch.equal(ups[one], ups[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def predicted(text: str) -> dict[str, float]:
    """Peaks by phase, in GiB, and the whole on a GPU, of what ``grpaint plan`` prints."""
    peaks = {name: float(peak) for name, peak in re.findall(r"^  (\w+) +([\d.]+) = ", text, re.M)}
    whole = re.search(r"on a GPU .* = ([\d.]+)", text)
    assert whole
    return peaks | {"on a GPU": float(whole[1])}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft.toml", "grpo.toml"])
def test_the_predicted_memory_is_what_plan_says(tmp_path: Path, name: str) -> None:
    save_settings("sdxl", tmp_path / "sdxl")
    sets = [f"model.base={tmp_path / 'sdxl'}", "model.config=", *(["model.start="] if name == "grpo.toml" else [])]
    end = command("plan", str(stand_ins.RECIPES / name), "--gpu", "24GB", "--minutes", "30", sets=sets)
    assert end.code == 0, end.err
    shown = predicted(GUIDE.split(f"\n{name}\n  phase")[1].split("22.35 GiB: fits")[0])
    assert shown == pytest.approx(predicted(end.out), rel=0.03)
    assert "22.35 GiB: fits" in end.out
