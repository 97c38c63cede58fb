"""Making the scorer: contrastive learning on drawn scenes, with captions that are wrong in one word.

    python -m grpaint.scenes.contrast [FILE] [--iterations N] [--seed S]

A batch is made of pairs of captions that differ in one edit, both drawn, so that each is the other's nearest wrong
answer in both directions; every image also sees further wrong captions of its own.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import platform
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grpaint.core.rng import noise, uniform
from grpaint.scenes.captions import (
    COLOURS,
    HELD_OUT_KINDS,
    KINDS,
    RELATIONS,
    SHAPES,
    SIZES,
    Caption,
    Thing,
    checkable,
    draw_caption,
)
from grpaint.scenes.render import draw_of, render
from grpaint.scenes.scorer import SHIPPED, Scorer
from grpaint.storage.files import write_weights

WRONG = 6  # further wrong captions an image
EVERY = 200  # iterations between two lines of output
_WORDS: dict[str, Sequence[Any]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "count": (2, 3, 4)}


# -- wrong captions ---------------------------------------------------------------------------------------------------


def one_word_wrong(caption: Caption) -> list[Caption]:
    """Every caption of the same kind that differs in one word: colour, shape, size, count or relation."""
    out = [dataclasses.replace(caption, relation=word) for word in RELATIONS if caption.relation]
    for number, thing in enumerate(caption.things):
        for name, words in _WORDS.items():
            if getattr(thing, name) in ("", 1):
                continue
            for word in words:
                things = list(caption.things)
                things[number] = dataclasses.replace(thing, **{name: word})
                out.append(dataclasses.replace(caption, things=tuple(things)))
    return [other for other in out if checkable(other) and not may_show(caption, other)]


def otherwise_wrong(caption: Caption) -> list[Caption]:
    """Colours swapped, sizes swapped, the two sides swapped, or one side left out."""
    if len(caption.things) == 1:
        return []
    first, second = caption.things
    pairs: list[tuple[Thing, ...]] = [(second, first), (first,), (second,)]
    for name in ("colour", "size"):
        a, b = getattr(first, name), getattr(second, name)
        pairs.append((dataclasses.replace(first, **{name: b}), dataclasses.replace(second, **{name: a})))
    out = [Caption(things, caption.relation if len(things) > 1 else "") for things in pairs]
    return [other for other in out if checkable(other) and not may_show(caption, other)]


def may_show(caption: Caption, other: Caption) -> bool:
    """Whether a drawing of ``caption`` may also be one of ``other``: no word of the two contradicts."""
    for things, relation in ((other.things, other.relation), (other.things[::-1], _TURNED.get(other.relation, ""))):
        fits = len(things) == len(caption.things) and all(map(_alike, things, caption.things))
        if fits and (not relation or not caption.relation or relation == caption.relation):
            return True
    return False


def unclear(captions: Sequence[Caption]) -> Tensor:
    """Which pairs of different rows ``[b, b]`` may be true of the same image."""
    looks = defaultdict(list)
    for row, caption in enumerate(captions):
        looks[frozenset((thing.count, thing.colour, thing.shape) for thing in caption.things)].append(row)
    out = torch.zeros(len(captions), len(captions), dtype=torch.bool)
    for rows in looks.values():
        for a, b in itertools.permutations(rows, 2):
            out[a, b] = may_show(captions[a], captions[b])
    return out


_TURNED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _alike(one: Thing, other: Thing) -> bool:
    sizes = one.size == other.size or not (one.size and other.size)
    return sizes and (one.count, one.colour, one.shape) == (other.count, other.colour, other.shape)


# -- batches ----------------------------------------------------------------------------------------------------------


def draw_pairs(count: int, seed: int, iteration: int) -> tuple[list[Caption], list[list[Caption]]]:
    """Captions of ``count`` scenes, two and two an edit apart, and ``WRONG`` wrong ones for each; none is held out."""
    captions: list[Caption] = []
    for pair in range(count // 2):
        draw = draw_of(seed, iteration, "pair", pair)
        caption = draw_caption(KINDS[(pair + iteration) % len(KINDS)], draw, held_out=False)
        captions += [caption, draw.choice([c for c in _wrong(caption, draw) if _drawable(c)] or [caption])]
    wrong = []
    for row, caption in enumerate(captions):
        draw = draw_of(seed, iteration, "wrong", row)
        wrong.append(draw.choices(_wrong(caption, draw), k=WRONG))
    return captions, wrong


def _wrong(caption: Caption, draw: random.Random) -> Sequence[Caption]:
    """Wrong captions from the training side of the split."""
    one, other = _training_side(caption)
    return other if other and (not one or draw.random() < 0.3) else one


@functools.lru_cache(maxsize=30_000)
def _training_side(caption: Caption) -> tuple[list[Caption], list[Caption]]:
    one, other = one_word_wrong(caption), otherwise_wrong(caption)
    return [wrong for wrong in one if not wrong.held_out], [wrong for wrong in other if not wrong.held_out]


def _drawable(caption: Caption) -> bool:
    """Whether there is surely room: not for two large ones, nor for three beside a fourth."""
    alone = len(caption.things) == 1
    return alone or (sum(t.size == "large" for t in caption.things) < 2 and all(t.count < 3 for t in caption.things))


def spoil(images: Tensor, seed: int, iteration: int) -> Tensor:
    """Images as a model in training draws them: some blurred a little, all with grain of up to 0.1."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share, grain = uniform((seed, iteration, "spoil"), 2 * len(images)).view(2, -1, 1, 1, 1)
    images = torch.lerp(images, soft, (2 * share - 1).clamp(min=0))
    return images + 0.1 * grain**2 * noise((seed, iteration, "grain"), range(len(images)), images.shape[1:])


# -- learning ---------------------------------------------------------------------------------------------------------


def contrast(scorer: Scorer, images: Tensor, captions: Sequence[Caption], wrong: Sequence[Sequence[Caption]]) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021); each image's own wrong captions join the first.

    What may be true of an image though it is not its caption counts neither way.
    """
    count = len(captions)
    every = [str(caption) for caption in captions] + [str(other) for row in wrong for other in row]
    texts = {text: number for number, text in enumerate(dict.fromkeys(every))}
    features = scorer.text_features(list(texts))[[texts[text] for text in every]]
    with torch.autocast("cpu", torch.bfloat16):
        seen = scorer.image_features(images).float()
    scale = scorer.log_scale.clamp(max=4.6).exp()
    logits = scale * seen @ features[:count].T
    across = logits.masked_fill(unclear(captions), -torch.inf)
    own = scale * torch.einsum("bw,bnw->bn", seen, features[count:].unflatten(0, (count, -1)))
    target = torch.arange(count)
    return (F.cross_entropy(torch.cat([across, own], 1), target) + F.cross_entropy(across.T, target)) / 2


def train(iterations: int, seed: int, batch: int = 128, learning_rate: float = 1.5e-3) -> Iterator[tuple[int, Scorer]]:
    """A scorer after every so many iterations and at the end."""
    with torch.random.fork_rng(devices=[]):  # module initialisation reads the global generator
        torch.manual_seed(seed)
        scorer = Scorer().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(scorer.parameters(), learning_rate, (0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, iterations, pct_start=0.05)
    for iteration in range(iterations):
        captions, wrong = draw_pairs(batch, seed, iteration)
        images = spoil(render(captions, (seed, iteration, "scenes")), seed, iteration)
        optimizer.zero_grad(set_to_none=True)
        contrast(scorer, images, captions, wrong).backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (iteration + 1) % EVERY == 0 or iteration + 1 == iterations:
            yield iteration + 1, scorer


# -- how well it reads ------------------------------------------------------------------------------------------------


@torch.no_grad()
def retrieval(scorer: Scorer, count: int = 1024, seed: int = 1000) -> dict[str, float]:
    """Shares of right answers on ``count`` held-out captions, drawn; ``count`` is a multiple of 64.

    ``text`` and ``image``: the right one of 64 captions for an image, and the reverse, where captions that may be true
    of the same image do not compete. ``word``: the right caption against one that is wrong in one word; also by kind.
    """
    kinds = HELD_OUT_KINDS
    captions = [draw_caption(kinds[i % len(kinds)], draw_of(seed, i), held_out=True) for i in range(count)]
    images = render(captions, (seed, "retrieval"))
    seen = torch.cat([scorer.image_features(part) for part in images.split(128)])
    said = scorer.text_features([str(caption) for caption in captions])
    text, image = [], []
    for rows in torch.arange(count).split(64):
        cosine = (seen[rows] @ said[rows].T).masked_fill(unclear([captions[i] for i in rows]), -torch.inf)
        text.append(cosine.argmax(1) == torch.arange(64))
        image.append(cosine.argmax(0) == torch.arange(64))
    other = [draw_of(seed, i, "wrong").choice(one_word_wrong(caption)) for i, caption in enumerate(captions)]
    word = (seen * said).sum(1) > (seen * scorer.text_features([str(caption) for caption in other])).sum(1)
    out = {"text": torch.cat(text), "image": torch.cat(image), "word": word}
    out |= {f"word/{kind}": word[number :: len(kinds)] for number, kind in enumerate(kinds)}
    return {name: right.float().mean().item() for name, right in out.items()}


def main() -> None:
    """Train, measure, write."""
    words = argparse.ArgumentParser(prog="python -m grpaint.scenes.contrast", description=__doc__.splitlines()[0])
    words.add_argument("file", nargs="?", type=Path, default=SHIPPED)
    words.add_argument("--iterations", type=int, default=1600)
    words.add_argument("--seed", type=int, default=0)
    settings = words.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    for iteration, scorer in train(settings.iterations, settings.seed):
        scores = {name: round(share, 4) for name, share in retrieval(scorer).items()}
        print(f"{iteration:5d}  {time.process_time() - begin:5.0f} s  {scores}", flush=True)
    half = {name: tensor.half() for name, tensor in scorer.state_dict().items()}
    scorer.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    header = {
        "model": "scenes-scorer",
        "command": f"python -m grpaint.scenes.contrast --iterations {settings.iterations} --seed {settings.seed}",
        "retrieval": json.dumps({name: round(share, 4) for name, share in retrieval(scorer, 4096).items()}),
        "made": f"{date.today()}, one thread of {platform.machine()}, torch {torch.__version__}, "
        f"{time.process_time() - begin:.0f} s of processor time",
    }
    write_weights(settings.file, half, header)
    print(json.dumps(header, indent=2))


if __name__ == "__main__":
    main()
