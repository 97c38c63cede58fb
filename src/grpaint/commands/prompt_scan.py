"""``grpaint prompts scan``: the spread of rewards within each prompt's group, near-duplicates, and overlaps."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from typer import echo

from grpaint.core.policy import Prompt
from grpaint.core.rng import seed_of
from grpaint.core.runtime import resolve
from grpaint.images.data import ImageData
from grpaint.images.prompts import PromptData
from grpaint.recipe.config import TrainRecipe, open_recipe
from grpaint.recipe.pieces import Data
from grpaint.rollout.rollout import roll

FLAT = 1e-6  # scores of a group that lie no further apart tell nothing
ALIKE = 0.75  # words, and pairs of neighbours, that two prompts share, of those that either has
_SAMPLE = 1000  # prompts drawn of data that makes them without end


def spread(recipe: TrainRecipe, count: int, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """What the base's images of ``count`` prompts score by the weighted rewards: a line a prompt.

    Sampled as training would, but neither pruned nor previewed.
    """
    recipe.data.prepare(log)
    policy = recipe.model.load(resolve(recipe.device, recipe.precision))
    prompts = recipe.data.prompts(count, 0, recipe.train.seed)
    plan = replace(recipe.plan, prune=None, previews=False, weights="current")
    rewards, out = recipe.reward_set(), []
    for first in range(0, count, recipe.train.prompts):
        part = prompts[first : first + recipe.train.prompts]
        seed = seed_of(recipe.train.seed, "prompt scan", first)
        with torch.no_grad(), policy.meter.account("prompt scan"):
            done = roll(policy, part, recipe.train.group_size, plan, iteration=0, seed=seed)
            images = policy.decode(done.x0)
        table = rewards.score(images, [part[row] for row in done.group.tolist()], done.references)
        out += [_line(prompt, table.total()[done.group == number]) for number, prompt in enumerate(part)]
    return out


def _line(prompt: Prompt, scores: Tensor) -> dict[str, Any]:
    ends = {"least": scores.min().item(), "most": scores.max().item()}
    return {"prompt": prompt.text, "mean": scores.mean().item(), "std": scores.std(correction=0).item(), **ends}


def verdicts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each line with why its prompt is dead, or "": without spread within the group there is nothing to learn.

    "all right" and "all wrong" are level with the best and the worst image of the whole scan; "flat" lies between.
    """
    best, worst = max(line["most"] for line in lines), min(line["least"] for line in lines)

    def word(line: dict[str, Any]) -> str:
        if line["most"] - line["least"] > FLAT:
            return ""
        right, wrong = best - line["mean"] <= FLAT, line["mean"] - worst <= FLAT
        return "flat" if right == wrong else "all right" if right else "all wrong"

    return [line | {"dead": word(line)} for line in lines]


def texts_of(data: Data, seed: int) -> list[str]:
    """The captions that data trains on: all that it holds, or a thousand draws where it makes them without end."""
    if isinstance(data, ImageData):
        return [data.prompt(item).text for item in data.training]
    held = data.training if isinstance(data, PromptData) else data.prompts(_SAMPLE, 0, seed)
    return [prompt.text for prompt in held]


def parts(text: str) -> frozenset[str]:
    """The words of a prompt and its pairs of neighbours between commas: tags may change places, colours may not."""
    found: set[str] = set()
    for piece in text.lower().split(","):
        words = re.findall(r"[^\W_]+", piece)
        found |= {*words, *map(" ".join, pairwise(words))}
    return frozenset(found)


def overlaps(prompts: Sequence[str], others: Sequence[str]) -> list[tuple[str, str, float]]:
    """Each of ``prompts`` that is nearly one of ``others``, by its words: that one, and the share in common."""
    index: dict[str, set[int]] = {}
    bags = [parts(text) for text in others]
    for row, bag in enumerate(bags):
        for word in bag:
            index.setdefault(word, set()).add(row)
    out = []
    for text in dict.fromkeys(prompts):
        bag = parts(text)
        near = set().union(*(index.get(word, set()) for word in bag))
        best = max(((len(bag & bags[row]) / len(bag | bags[row]), -row) for row in near), default=(0.0, 0))
        if best[0] >= ALIKE:
            out.append((text, others[-best[1]], best[0]))
    return out


def near_duplicates(prompts: Sequence[str]) -> list[tuple[str, str, float]]:
    """Prompts that are nearly an earlier, different one."""
    seen: list[str] = []
    out: list[tuple[str, str, float]] = []
    for text in dict.fromkeys(prompts):
        out += overlaps([text], seen)
        seen.append(text)
    return out


def scan(recipe: TrainRecipe, captions: Data | None, count: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The whole of ``grpaint prompts scan``; ``captions`` is the data of the supervised stage, where there was one."""
    lines = verdicts(spread(recipe, count, log))
    asked = [line["prompt"] for line in lines]
    judged = [prompt.text for prompt in recipe.data.held_out(recipe.evaluate.prompts, recipe.evaluate.seed)]
    trained = texts_of(recipe.data, recipe.train.seed)
    out: dict[str, Any] = {"prompts": lines, "dead": sum(bool(line["dead"]) for line in lines)}
    out["near_duplicates"] = near_duplicates(asked)
    out["held_out_in_training"] = overlaps(judged, trained)
    if captions is not None:
        known = texts_of(captions, recipe.train.seed)
        out["training_in_captions"] = overlaps(asked, known)
        out["held_out_in_captions"] = overlaps(judged, known)
    return out


def run(name: str | None, sets: list[str], count: int, captions_of: str | None, *, as_json: bool) -> None:
    """Scan ``count`` prompts of a recipe and print what was found.

    ``captions_of`` names the supervised stage's recipe, in whose captions overlaps are looked for.
    """
    recipe, _ = open_recipe(name, "train", sets)
    assert isinstance(recipe, TrainRecipe)
    captions = open_recipe(captions_of, "sft")[0].data if captions_of else None
    report = scan(recipe, captions, count, lambda line: echo(line, err=True))
    echo(json.dumps(report) if as_json else _text(report))


def _text(report: dict[str, Any]) -> str:
    lines = [f"{'mean':>8} {'std':>8}  prompt"]
    for line in sorted(report["prompts"], key=lambda line: line["std"]):
        dead = f"  DEAD: {line['dead']}" if line["dead"] else ""
        lines.append(f"{line['mean']:8.3f} {line['std']:8.3f}  {line['prompt']}{dead}")
    lines.append(f"{report['dead']} of {len(report['prompts'])} prompts are dead: every image of a group scores alike")
    titles = {
        "near_duplicates": "near-duplicates among these prompts",
        "held_out_in_training": "held-out prompts that training has, nearly",
        "training_in_captions": "of these prompts that the supervised stage had, nearly",
        "held_out_in_captions": "held-out prompts that the supervised stage had, nearly",
    }
    for key, title in titles.items():
        if key in report:
            lines.append(f"{len(report[key])} {title}")
            lines += [f"  {prompt}  ~  {other}" for prompt, other, _ in report[key][:5]]
    return "\n".join(lines)
