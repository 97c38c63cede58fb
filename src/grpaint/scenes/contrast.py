"""Train the scorer: contrastive learning on drawn scenes, with captions that are wrong in one word.

    python -m grpaint.scenes.contrast [FILE] [--iterations N] [--seed S]

A batch consists of pairs of captions that differ in one edit, both drawn, so that each is the other's nearest wrong
answer in both directions. Each image is also compared with further wrong captions of its own.
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
from grpaint.scenes.render import keyed_random, render
from grpaint.scenes.scorer import SHIPPED, Scorer
from grpaint.storage.files import write_weights

WRONG_CAPTIONS = 6  # for each image, besides the other captions of its batch
LOG_EVERY = 200  # iterations between two lines of output
_WORDS: dict[str, Sequence[Any]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "count": (2, 3, 4)}


# -- wrong captions ---------------------------------------------------------------------------------------------------


def one_word_wrong(caption: Caption) -> list[Caption]:
    """List the captions of the same kind that differ in one word: a colour, shape, size, count or relation."""
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
    """List the captions with the colours swapped, the sizes swapped, the two sides swapped, or one side left out."""
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
    """Whether a drawing of ``caption`` may also show ``other``, since no words of the two contradict each other."""
    for things, relation in ((other.things, other.relation), (other.things[::-1], _OPPOSITE.get(other.relation, ""))):
        fits = len(things) == len(caption.things) and all(map(_compatible, things, caption.things))
        if fits and (not relation or not caption.relation or relation == caption.relation):
            return True
    return False


def ambiguous_pairs(captions: Sequence[Caption]) -> Tensor:
    """Return which pairs of different captions may be true of the same image, as booleans ``[b, b]``."""
    rows_by_look = defaultdict(list)
    for row, caption in enumerate(captions):
        rows_by_look[frozenset((thing.count, thing.colour, thing.shape) for thing in caption.things)].append(row)
    out = torch.zeros(len(captions), len(captions), dtype=torch.bool)
    for rows in rows_by_look.values():
        for a, b in itertools.permutations(rows, 2):
            out[a, b] = may_show(captions[a], captions[b])
    return out


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _compatible(one: Thing, other: Thing) -> bool:
    same_size = one.size == other.size or not (one.size and other.size)
    return same_size and (one.count, one.colour, one.shape) == (other.count, other.colour, other.shape)


# -- batches ----------------------------------------------------------------------------------------------------------


def draw_pairs(count: int, seed: int, iteration: int) -> tuple[list[Caption], list[list[Caption]]]:
    """Draw ``count`` captions (even), in pairs that usually differ in one edit, and ``WRONG_CAPTIONS`` wrong ones each.

    All come from the training side of the split.
    """
    captions: list[Caption] = []
    for pair in range(count // 2):
        rng = keyed_random(seed, iteration, "pair", pair)
        caption = draw_caption(KINDS[(pair + iteration) % len(KINDS)], rng, held_out=False)
        captions += [caption, rng.choice([c for c in _wrong_captions(caption, rng) if _drawable(c)] or [caption])]
    wrong = []
    for row, caption in enumerate(captions):
        rng = keyed_random(seed, iteration, "wrong", row)
        wrong.append(rng.choices(_wrong_captions(caption, rng), k=WRONG_CAPTIONS))
    return captions, wrong


def _wrong_captions(caption: Caption, rng: random.Random) -> Sequence[Caption]:
    """Choose wrong captions of the training side: in 30% of cases ``otherwise_wrong`` ones, else ``one_word_wrong``."""
    one, other = _training_side(caption)
    return other if other and (not one or rng.random() < 0.3) else one


@functools.lru_cache(maxsize=30_000)
def _training_side(caption: Caption) -> tuple[list[Caption], list[Caption]]:
    """Split the wrong captions into those with one wrong word and the others, without held-out ones."""
    one, other = one_word_wrong(caption), otherwise_wrong(caption)
    return [wrong for wrong in one if not wrong.held_out], [wrong for wrong in other if not wrong.held_out]


def _drawable(caption: Caption) -> bool:
    """Whether the canvas surely has room: not for two large objects, nor for three objects beside another."""
    alone = len(caption.things) == 1
    return alone or (sum(t.size == "large" for t in caption.things) < 2 and all(t.count < 3 for t in caption.things))


def spoil(images: Tensor, seed: int, iteration: int) -> Tensor:
    """Make images look like those of a model in training: blur some a little, and add grain of up to 0.1 to all."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share, grain = uniform((seed, iteration, "spoil"), 2 * len(images)).view(2, -1, 1, 1, 1)
    images = torch.lerp(images, soft, (2 * share - 1).clamp(min=0))
    return images + 0.1 * grain**2 * noise((seed, iteration, "grain"), range(len(images)), images.shape[1:])


# -- learning ---------------------------------------------------------------------------------------------------------


def contrastive_loss(
    scorer: Scorer, images: Tensor, captions: Sequence[Caption], wrong: Sequence[Sequence[Caption]]
) -> Tensor:
    """Return the InfoNCE loss (Radford et al. 2021) from image to caption and from caption to image, averaged.

    In the first direction each image is also compared with its own ``wrong`` captions. A caption of another image that
    may be true of this one is left out in both directions.
    """
    count = len(captions)
    every = [str(caption) for caption in captions] + [str(other) for row in wrong for other in row]
    texts = {text: number for number, text in enumerate(dict.fromkeys(every))}
    features = scorer.text_features(list(texts))[[texts[text] for text in every]]
    with torch.autocast("cpu", torch.bfloat16):
        image_features = scorer.image_features(images).float()
    scale = scorer.log_scale.clamp(max=4.6).exp()
    logits = scale * image_features @ features[:count].T
    across = logits.masked_fill(ambiguous_pairs(captions), -torch.inf)
    own = scale * torch.einsum("bw,bnw->bn", image_features, features[count:].unflatten(0, (count, -1)))
    target = torch.arange(count)
    return (F.cross_entropy(torch.cat([across, own], 1), target) + F.cross_entropy(across.T, target)) / 2


def train(iterations: int, seed: int, batch: int = 128, learning_rate: float = 1.5e-3) -> Iterator[tuple[int, Scorer]]:
    """Train a scorer; yields it with the number of iterations, after every ``LOG_EVERY`` of them and at the end."""
    with torch.random.fork_rng(devices=[]):  # module initialisation uses the global generator
        torch.manual_seed(seed)
        scorer = Scorer().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(scorer.parameters(), learning_rate, (0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, iterations, pct_start=0.05)
    for iteration in range(iterations):
        captions, wrong = draw_pairs(batch, seed, iteration)
        images = spoil(render(captions, (seed, iteration, "scenes")), seed, iteration)
        optimizer.zero_grad(set_to_none=True)
        contrastive_loss(scorer, images, captions, wrong).backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (iteration + 1) % LOG_EVERY == 0 or iteration + 1 == iterations:
            yield iteration + 1, scorer


# -- quality ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def retrieval(scorer: Scorer, count: int = 1024, seed: int = 1000) -> dict[str, float]:
    """Measure the share of right choices on ``count`` (a multiple of 64) drawn held-out captions.

    ``text``: choose an image's caption among 64. ``image``: choose a caption's image among 64. In both, captions that
    may be true of the same image do not compete. ``word``, ``word/KIND``: choose between the caption and one that is
    wrong in one word.
    """
    kinds = HELD_OUT_KINDS
    captions = [draw_caption(kinds[i % len(kinds)], keyed_random(seed, i), held_out=True) for i in range(count)]
    images = render(captions, (seed, "retrieval"))
    image_features = torch.cat([scorer.image_features(part) for part in images.split(128)])
    text_features = scorer.text_features([str(caption) for caption in captions])
    text, image = [], []
    for rows in torch.arange(count).split(64):
        ambiguous = ambiguous_pairs([captions[i] for i in rows])
        cosine = (image_features[rows] @ text_features[rows].T).masked_fill(ambiguous, -torch.inf)
        text.append(cosine.argmax(1) == torch.arange(64))
        image.append(cosine.argmax(0) == torch.arange(64))
    wrong = [keyed_random(seed, i, "wrong").choice(one_word_wrong(caption)) for i, caption in enumerate(captions)]
    wrong_features = scorer.text_features([str(caption) for caption in wrong])
    word = (image_features * text_features).sum(1) > (image_features * wrong_features).sum(1)
    out = {"text": torch.cat(text), "image": torch.cat(image), "word": word}
    out |= {f"word/{kind}": word[number :: len(kinds)] for number, kind in enumerate(kinds)}
    return {name: right.float().mean().item() for name, right in out.items()}


def main() -> None:
    """Train a scorer, measure it, and write its file."""
    parser = argparse.ArgumentParser(prog="python -m grpaint.scenes.contrast", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--iterations", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
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
