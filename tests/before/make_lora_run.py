"""Make the run in ``lora-run``: how it was done once, at the commit that README.md names; see there.

``python tests/before/make_lora_run.py FOLDER`` with ``tests`` on PYTHONPATH writes a base pipeline, a reward, a LoRA
run that a signal stopped after its third iteration, and the lines and weights of the same run when nothing stops it.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from tiny_parts import ready
from tiny_runs import command, timeless
from tiny_unets import sdxl

REWARD = """
import os
import signal
from pathlib import Path

import torch

rollouts = []


def score(images, prompts):
    if len(images) == 8:  # an evaluation has 6
        rollouts.append(len(images))
    if len(rollouts) == 3 and Path("stop").exists():
        os.kill(os.getpid(), signal.SIGTERM)
    return images.mean((1, 2, 3)) + 0.1 * (torch.arange(len(images)) % 4)
"""
SETS = (
    'model={kind="diffusers",base="base",height=32,width=32,guidance=2.0,lora={rank=2}}',
    'data={kind="scenes",kinds=["single"]}',
    'plan={steps=4,sampler={kind="ddim"},window={kind="random",size=2,high=1},start={kind="shared"}}',
    'advantage={kind="history",buffer=6,min_count=2}',
    'objective.penalty={kind="adaptive-kl",target=1e-4}',
    'rewards={bright={kind="reward.py:score"}}',
    "train.iterations=5",
    "train.prompts=2",
    "train.group_size=4",
    "train.updates=2",
    "train.learning_rate=1e-3",
    "train.schedule=cosine",
    "train.optimizer={kind='adamw',weight_decay=0.1}",
    "evaluate.every=2",
    "evaluate.prompts=6",
    "evaluate.probe=6",
    "evaluate.steps=2",
    "evaluate.guided=[]",
    "evaluate.pictures=0",
    "checkpoint.every=1",
    "checkpoint.keep=1",
    "device=cpu",
    "precision=fp32",
    "threads=1",
)


def base(place: Path) -> None:
    """An SDXL pipeline of random weights, as small as it goes, in half precision."""
    pipe = sdxl()
    torch.manual_seed(0)
    unet = {**pipe.unet.config, "block_out_channels": (8, 16), "projection_class_embeddings_input_dim": 32 + 6 * 8}
    pipe.unet = UNet2DConditionModel.from_config(unet)
    pipe.vae = AutoencoderKL.from_config({**pipe.vae.config, "block_out_channels": (4, 8)})
    ready(pipe).to(torch.float16).save_pretrained(place)


def write(place: Path) -> None:
    """The whole folder."""
    place.mkdir(parents=True)
    base(place / "base")
    (place / "reward.py").write_text(REWARD.lstrip())
    with contextlib.chdir(place):
        Path("stop").touch()
        stopped = command("train", "scenes-epsilon/ddpo", "--name", "it", sets=SETS)
        assert stopped.code == 128 + 15, stopped.err
        Path("stop").unlink()
        straight = command("train", "scenes-epsilon/ddpo", "--name", "straight", sets=SETS)
        assert straight.code == 0, straight.err
        Path("continuation").mkdir()
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            later = [line for line in timeless(Path("runs/straight") / name) if line["iteration"] > 3]
            (Path("continuation") / name).write_text("".join(json.dumps(line) + "\n" for line in later))
        shutil.copy("runs/straight/checkpoints/000005/model.safetensors", "continuation")
        shutil.move("runs/it", "it")
        shutil.rmtree("runs")
        shutil.rmtree("it/samples")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
