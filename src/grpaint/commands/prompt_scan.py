"""``grpaint data prompts``: the reward spread within each prompt's group, near-duplicate prompts, and overlaps."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.rng import seed_of
from grpaint.images.data import ImageData
from grpaint.images.prompts import PromptData
from grpaint.parallel.join import join_group
from grpaint.parallel.world import ONE, World
from grpaint.recipe.config import DEFAULT, TrainRecipe, open_recipe
from grpaint.recipe.pieces import Data
from grpaint.recipe.trust import check_rewards, recipe_origin
from grpaint.report.console import Terminal, echo_lines
from grpaint.rollout.rollout import Roller
from grpaint.run.opening import load_model
from grpaint.run.shares import check_shares, own_samples
from grpaint.storage.reading import read_toml

FLAT = 1e-6  # a group whose scores differ by no more has no advantage to learn from
NEAR = 0.75  # Jaccard similarity of the words and word pairs of two prompts, from which they are near-duplicates
_SAMPLE = 1000  # prompts to draw if the data generates them without end


def score_prompts(
    recipe: TrainRecipe, count: int, log: Callable[[str], None], world: World = ONE
) -> list[dict[str, Any]]:
    """Score the base's images of ``count`` prompts by the weighted rewards: mean, std, least and most per prompt.

    Images are sampled as in training, but without pruning and previews. The processes of ``world`` divide them, and
    each returns all lines.
    """
    check_shares(recipe, world)
    recipe.data.prepare(log)
    policy = load_model(recipe, world)
    prompts = recipe.data.prompts(count, 0, recipe.train.seed)
    plan = replace(recipe.plan, prune=None, previews=False, weights="current")
    rewards, out = recipe.reward_set().among(world, prompts), []
    for first in range(0, count, recipe.train.prompts):
        batch = prompts[first : first + recipe.train.prompts]
        key, samples = (seed_of(recipe.train.seed, "prompt scan", first), 0), own_samples(recipe, len(batch), world)
        own: dict[str, Tensor] = {}
        if len(samples):
            with torch.no_grad(), policy.meter.account("prompt scan"):
                rollout = Roller(policy, batch, recipe.train.group_size, plan, key, samples=samples).run(None)
                images = policy.decode(rollout.x0)
            table = rewards.score(images, [batch[row] for row in rollout.group.tolist()], rollout.references)
            own = {"score": table.total(), "group": rollout.group}
        rewards.finish()
        every = world.gather(own)
        out += [_line(prompt, every["score"][every["group"] == number]) for number, prompt in enumerate(batch)]
    return out


def _line(prompt: Prompt, scores: Tensor) -> dict[str, Any]:
    ends = {"least": scores.min().item(), "most": scores.max().item()}
    return {"prompt": prompt.text, "mean": scores.mean().item(), "std": scores.std(correction=0).item(), **ends}


def mark_dead_prompts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add ``dead`` to each line: the reason if the group's scores have no spread, so that it has no advantage, or "".

    "all right" and "all wrong" groups score like the best and the worst image of the whole scan; "flat" ones between.
    """
    best, worst = max(line["most"] for line in lines), min(line["least"] for line in lines)

    def reason(line: dict[str, Any]) -> str:
        if line["most"] - line["least"] > FLAT:
            return ""
        right, wrong = best - line["mean"] <= FLAT, line["mean"] - worst <= FLAT
        return "flat" if right == wrong else "all right" if right else "all wrong"

    return [line | {"dead": reason(line)} for line in lines]


def training_texts(data: Data, seed: int) -> list[str]:
    """The captions that data trains on: all of them, or 1,000 draws if it generates them without end."""
    if isinstance(data, ImageData):
        return [data.prompt(item).text for item in data.training]
    prompts = data.training if isinstance(data, PromptData) else data.prompts(_SAMPLE, 0, seed)
    return [prompt.text for prompt in prompts]


def word_features(text: str) -> frozenset[str]:
    """The words of a prompt and the pairs of adjacent words between commas.

    Tags in another order have the same features; colours that change places do not.
    """
    features: set[str] = set()
    for piece in text.lower().split(","):
        words = re.findall(r"[^\W_]+", piece)
        features |= {*words, *map(" ".join, pairwise(words))}
    return frozenset(features)


def overlaps(prompts: Sequence[str], others: Sequence[str]) -> list[tuple[str, str, float]]:
    """(prompt, most similar other, similarity) for each prompt that is a near-duplicate of one of ``others``."""
    index: dict[str, set[int]] = {}
    bags = [word_features(text) for text in others]
    for row, bag in enumerate(bags):
        for word in bag:
            index.setdefault(word, set()).add(row)
    out = []
    for text in dict.fromkeys(prompts):
        bag = word_features(text)
        near = set().union(*(index.get(word, set()) for word in bag))
        best = max(((len(bag & bags[row]) / len(bag | bags[row]), -row) for row in near), default=(0.0, 0))
        if best[0] >= NEAR:
            out.append((text, others[-best[1]], best[0]))
    return out


def near_duplicate_prompts(prompts: Sequence[str]) -> list[tuple[str, str, float]]:
    """(prompt, earlier prompt, similarity) for each prompt that is a near-duplicate of an earlier, different one."""
    earlier: list[str] = []
    out: list[tuple[str, str, float]] = []
    for text in dict.fromkeys(prompts):
        out += overlaps([text], earlier)
        earlier.append(text)
    return out


def scan_prompts(
    recipe: TrainRecipe, captions: Data | None, count: int, log: Callable[[str], None], world: World = ONE
) -> dict[str, Any]:
    """Make the report of ``grpaint data prompts``; ``captions`` is the supervised stage's data, if there was one."""
    lines = mark_dead_prompts(score_prompts(recipe, count, log, world))
    texts = [line["prompt"] for line in lines]
    held_out = [prompt.text for prompt in recipe.data.held_out(recipe.evaluate.prompts, recipe.evaluate.seed)]
    training = training_texts(recipe.data, recipe.train.seed)
    out: dict[str, Any] = {"prompts": lines, "dead": sum(bool(line["dead"]) for line in lines)}
    out["near_duplicates"] = near_duplicate_prompts(texts)
    out["held_out_in_training"] = overlaps(held_out, training)
    if captions is not None:
        supervised = training_texts(captions, recipe.train.seed)
        out["training_in_captions"] = overlaps(texts, supervised)
        out["held_out_in_captions"] = overlaps(held_out, supervised)
    return out


def run(name: str | None, sets: list[str], count: int, captions_of: str | None, *, as_json: bool, trust: bool) -> None:
    """Scan ``count`` prompts of a recipe and print the report.

    ``captions_of``: the supervised stage's recipe, whose captions are searched for overlaps. ``trust``: a run's own
    recipe may name code.

    Raises:
        ConfigError: a recipe cannot run, or names code, or starts something, and is not trusted.
    """
    with join_group() as world:
        name = DEFAULT["train"] if name is None else name
        origin = recipe_origin(name, trust=trust)
        check_rewards(read_toml(origin.file), origin)
        with origin.guard(sets):
            recipe, _ = open_recipe(name, "train", sets)
        assert isinstance(recipe, TrainRecipe)
        captions = _data_of(captions_of, trust=trust) if captions_of is not None else None
        with origin.guard(sets):
            report = scan_prompts(recipe, captions, count, Terminal(stderr=True, quiet=not world.first).print, world)
        if world.first:
            echo_lines([json.dumps(report)] if as_json else _report_lines(report))


def _data_of(name: str, *, trust: bool) -> Data:
    """Return the data of a supervised stage's recipe."""
    with recipe_origin(name, trust=trust).guard():
        return open_recipe(name, "sft")[0].data


def _report_lines(report: dict[str, Any]) -> list[str]:
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
    return lines
