"""One rank that trains a list of recipes after another and saves what it computed: ``RANK SIZE FOLDER``."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from grpaint.commands.train.running import open_loop
from grpaint.loops import sft, train
from grpaint.parallel.group import Group, Place
from grpaint.parallel.world import ONE
from grpaint.recipe.config import open_recipe, resolve, stage_of
from grpaint.recipe.stand_ins import stand_ins, with_stand_ins
from grpaint.run.folder import RunFolder
from grpaint.run.shares import check_shares
from grpaint.run.signals import Listener


def train_case(case, world, folder):
    stage = stage_of(case["recipe"])
    if world.first:
        recipe, settings = open_recipe(case["recipe"], stage, case["sets"])
        world.from_first([settings, stand_ins(recipe)])
    else:
        settings, tables = world.from_first(None)
        recipe, _ = resolve(with_stand_ins(settings, tables), stage)
    check_shares(recipe, world)
    gradients, rollouts = [], []
    with RunFolder.create(folder, settings) as run, Listener() as listener:
        loop = open_loop(recipe, run, lambda _: None, listener, world)
        clip, start = loop.clip, [parameter.detach().clone() for parameter in loop.parameters]

        def record_and_clip():
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in loop.parameters])
            return clip()

        loop.clip = record_and_clip
        update = loop.update

        def record_and_update(terms, batch, advantage, *anchor):
            every = world.gather({"x0": batch.x0, "numbers": batch.numbers, "advantage": advantage})
            rollouts.append({name: tensor[every["numbers"].argsort()] for name, tensor in every.items()})
            return update(terms, batch, advantage, *anchor)

        loop.update = record_and_update
        (sft if stage == "sft" else train)(recipe, loop)
        lines = {name: run.lines(name) for name in ("metrics.jsonl", "evaluations.jsonl")}
    weights = [parameter.detach() for parameter in loop.parameters]
    return {"gradients": gradients, "rollouts": rollouts, "start": start, "weights": weights, "lines": lines}


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    world = ONE
    if size > 1:
        store = dist.FileStore(str(folder / f"store-{size}"), size)
        dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size)
        world = Group(Place(rank, size, rank, size, 0, 1), dist.PrefixStore("own", store))
        world.limit(120)
    cases = json.loads((folder / "cases.json").read_text())
    results = {name: train_case(case, world, folder / f"{name}-{size}-{rank}") for name, case in cases.items()}
    if rank == 0:
        torch.save(results, folder / f"{size}.pt")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
