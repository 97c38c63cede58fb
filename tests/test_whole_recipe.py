"""The SSD-1B recipe from end to end, by its own commands: a drawn booru, SFT, GRPO on three scorers, every measure.

The pipeline has SSD-1B's block layout and the scorers the original files' layouts, all tiny and random.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import tiny_pipelines
import tiny_runs
from tiny_runs import command, lines
from tiny_scorers import clip_folder, head_tensors, lpips_tensors

SMALL = ("device=cpu", "precision=fp32", "threads=1", "evaluate.every=2", "evaluate.prompts=6", "evaluate.steps=2")
BATCH = (
    "evaluate.probe=4",
    "checkpoint.every=2",
    "model.lora.rank=4",
    "model.lora.alpha=4",
    "model.checkpointing=false",
)
DATA = (
    "data.train=drawn/train",
    "data.held_out_path=drawn/held-out",
    "data.resolution=32",
    "data.bucket_step=8",
    'data.tags={categories=["general"],separator=" "}',
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Everything that a user would have downloaded."""
    with tiny_runs.folder(tmp_path_factory.mktemp("whole")) as here:
        tiny_pipelines.save("ssd-1b", here)
        clip_folder(here / "clip")
        save_file(head_tensors(16), here / "head.safetensors")
        for name, tensors in zip(("alexnet", "heads"), lpips_tensors(), strict=True):
            save_file(tensors, here / f"{name}.safetensors")
        assert command("data", "draw", "--out", "drawn", "--count", "32", "--held-out", "8").code == 0
        yield here


def test_sft_then_grpo_then_every_measure(here):
    model = [f"model.base={json.dumps(str(here / 'ssd-1b'))}", "model.height=32", "model.width=32"]
    both = [*SMALL, *BATCH, *DATA, *model]
    first = [*both, "train.iterations=2", "train.batch=4", "train.warmup=0"]
    end = command("sft", "ssd-1b/sft", sets=first)
    assert end.code == 0, end.err
    scorers = {
        "clip": {"kind": "clip-score", "weights": "clip", "tokenizer": "clip", "weight": 0.4},
        "aesthetic": {"kind": "aesthetic", "weights": "head.safetensors", "clip": "clip", "weight": 0.4},
        "lpips": {"kind": "lpips", "weights": "alexnet.safetensors", "heads": "heads.safetensors", "weight": 0.2},
    }
    second = [
        *both,
        *("model.start=runs/sft/checkpoints/000002", "plan.steps=4", "model.embeddings=encode"),
        *("train.iterations=2", "train.prompts=4", "train.group_size=4", "train.learning_rate=0.001"),
        *(f"rewards.{name}.self_test=false" for name in scorers),  # random weights fail it, as they should
        *(f"rewards.{name}.{key}={json.dumps(value)}" for name, item in scorers.items() for key, value in item.items()),
    ]
    end = command("train", "ssd-1b/flow-grpo", sets=second)
    assert end.code == 0, end.err
    line = lines(Path("runs/flow-grpo/metrics.jsonl"))[-1]
    assert {"reward/clip", "reward/aesthetic", "reward/lpips", "advantage/share/lpips"} <= line.keys()
    assert line["policy/update_to_weight"] > 0

    features = [
        "measure.features.kind=clip",
        "measure.features.path=clip",
        "measure.group=2",
        "measure.group_prompts=2",
    ]
    words = ("evaluate", "base=flow-grpo:base", "sft=runs/sft", "tuned=flow-grpo", "--few", "--json")
    end = command(*words, sets=[*features, "measure.draws=20", "measure.image_draws=2"])
    assert end.code == 0, end.err
    report = json.loads(end.out)
    measures = {item["measure"]: item for item in report["measures"]}
    assert {
        "fid",
        "kid",
        "reward/clip",
        "reward/aesthetic",
        "reward/lpips",
        "ssim",
        "psnr",
        "denoising_loss",
    } <= measures.keys()
    assert all(measures[name]["protocol"] == "reconstruction" for name in ("reward/lpips", "ssim", "psnr"))
    assert measures["fid"]["card"]["features"]["name"].startswith("CLIP")
    assert (
        report["sources"]["base"]["weights"]
        == report["sources"]["sft"]["weights"]
        != report["sources"]["tuned"]["weights"]
    )
