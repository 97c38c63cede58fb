"""What a rank does in the tests of equality: it trains a list of recipes, one after another, and saves the numbers."""

import json
import shutil
import warnings
from pathlib import Path
from unittest import mock

import torch

from grpaint.commands.train.running import open_loop
from grpaint.core.errors import ConfigError
from grpaint.learn.advantage import compute_advantage
from grpaint.loops import sft, train
from grpaint.recipe.config import open_recipe, resolve, stage_of
from grpaint.recipe.stand_ins import stand_ins, with_stand_ins
from grpaint.run.folder import RunFolder
from grpaint.run.read_only import ReadOnlyRun
from grpaint.run.shares import check_shares
from grpaint.run.signals import Listener
from grpaint.storage.layout import read_in_order


def train_case(case, world, folder):
    """Train a recipe; return what every update and iteration computed, the same on all ranks.

    ``case["resume"]``: the folder of a run that is copied, and gone on with from its first checkpoint.
    """
    stage = stage_of(case["recipe"])
    if world.first:
        recipe, settings = open_recipe(case["recipe"], stage, case["sets"])
        world.from_first([settings, stand_ins(recipe)])
    else:
        settings, tables = world.from_first(None)
        recipe, _ = resolve(with_stand_ins(settings, tables), stage)
    try:
        check_shares(recipe, world)
    except ConfigError as error:
        return {"refused": str(error)}
    gradients, updates, scores = [], [], []

    def record_and_compute(advantage, table, whole):
        scores.append({"group": whole.group, "texts": [prompt.text for prompt in whole.prompts], **table.columns})
        return compute_advantage(advantage, table, whole)

    with (
        _open_run(case, world, folder, settings) as run,
        Listener() as listener,
        mock.patch("grpaint.loops.compute_advantage", record_and_compute),
    ):
        loop = open_loop(recipe, run, lambda _: None, listener, world)
        clip, start = loop.clip, whole(loop.policy, loop.policy.weights.trainable)

        def record_and_clip():
            trainable = loop.policy.weights.trainable
            gradients.append(whole(loop.policy, {name: _gradient(p) for name, p in trainable.items()}))
            return clip()

        loop.clip = record_and_clip
        update = loop.update

        def record_and_update(terms, batch, advantage, *anchor):
            every = world.gather({"x0": batch.x0, "numbers": batch.numbers, "advantage": advantage})
            updates.append({name: tensor[every["numbers"].argsort()] for name, tensor in every.items()})
            return update(terms, batch, advantage, *anchor)

        loop.update = record_and_update
        (sft if stage == "sft" else train)(recipe, loop)
        lines = {name: run.lines(name) for name in ("metrics.jsonl", "evaluations.jsonl")}
    return {
        "names": sorted(loop.policy.weights.trainable),
        "start": start,
        "gradients": gradients,
        "updates": updates,
        "scores": scores,
        "weights": whole(loop.policy, loop.policy.weights.trainable),
        "answers": answers(loop.policy, recipe),
        "lines": lines,
    }


def _gradient(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def whole(policy, tensors):
    """Copies of trainable tensors, or of their gradients, of which each rank may have a share."""
    late = policy.weights.whole({name: tensor.detach() for name, tensor in tensors.items()})
    return [tensor.clone() for tensor in read_in_order(late)]


def _open_run(case, world, folder, settings):
    """Open the run's folder: rank 0 writes it, and the others read it."""
    run = None
    if world.first and "resume" in case:
        shutil.copytree(case["resume"], folder)
        for checkpoint in sorted((folder / "checkpoints").iterdir())[1:]:
            shutil.rmtree(checkpoint)
        run = RunFolder.open(folder)
    elif world.first:
        run = RunFolder.create(folder, settings)
    checkpoint = world.from_first(run.resumable.name if run and run.resumable else None)
    return run or ReadOnlyRun(folder, checkpoint)


def answers(policy, recipe):
    """What each set of weights predicts for one row of noise at the second point of a grid of four."""
    row, prompt = policy.noise((0, "answers"), [0]), recipe.data.held_out(1, 0)
    here, cond = policy.path.grid(4)[1], policy.encode(prompt)
    with torch.no_grad():
        sets = dict.fromkeys(["reference", *policy.weights.tensors()])
        return {name: policy.predict(row, here, cond, name).x0 for name in sets}


def train_cases(world, folder):
    """Train every case of ``cases.json``; rank 0 saves the numbers of each as ``NAME-SIZE.pt``."""
    warnings.simplefilter("ignore")
    folder = Path(folder)
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        numbers = train_case(case, world, folder / f"{name}-{world.size}")
        if world.first:
            torch.save(numbers, folder / f"{name}-{world.size}.pt")
