"""The checker is exact on drawn scenes, stands noise, refuses wrong captions, and grades what lies between.

Half of the evidence comes from a second renderer, written here with Pillow: polygons and ellipses drawn eight times as
large from the areas alone, and averaged down. It shares the layout and the palette with the package and nothing else.
"""

import math
import random
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from grpaint.core.errors import ConfigError
from grpaint.scenes.captions import KINDS, SHAPES, Caption, draw_caption, parse
from grpaint.scenes.checker import Verdict, background, check, find_components
from grpaint.scenes.render import Layout, draw, lay_out, render
from grpaint.scenes.shapes import BACKGROUND, PALETTE, SIDE

TIMES = 8
OURS, THEIRS = 650, 250  # scenes a kind by the package and by Pillow: 5,400 of which 1,500 by Pillow


def corners(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape whose area is pi * radius^2 and whose centroid is (x, y), in small pixels."""
    area = math.pi * radius**2
    if shape == "square":
        half = math.sqrt(area) / 2
        offsets = [(-half, -half), (half, -half), (half, half), (-half, half)]
    elif shape == "triangle":
        side = math.sqrt(4 * area / math.sqrt(3))
        height = side * math.sqrt(3) / 2
        offsets = [(0, -2 * height / 3), (side / 2, height / 3), (-side / 2, height / 3)]
    else:
        arm = math.sqrt(area / 5)
        a, b = arm / 2, 3 * arm / 2
        quarter = [(a, -b), (a, -a), (b, -a)]
        offsets = []
        for _ in range(4):
            offsets += quarter
            quarter = [(-dy, dx) for dx, dy in quarter]
    return [(TIMES * (x + dx) - 0.5, TIMES * (y + dy) - 0.5) for dx, dy in offsets]


def paint(layout: Layout, row: int) -> Tensor:
    """One scene by Pillow."""

    def ink(colour: tuple[float, ...]) -> tuple[int, ...]:
        return tuple(round(255 * part) for part in colour)

    canvas = Image.new("RGB", (SIDE * TIMES, SIDE * TIMES), ink(BACKGROUND))
    pen = ImageDraw.Draw(canvas)
    for n in (layout.radius[row] > 0).nonzero()[:, 0].tolist():
        shape = SHAPES[layout.shape[row, n]]
        x, y, radius = (float(part[row, n]) for part in (layout.x, layout.y, layout.radius))
        fill = ink(PALETTE[layout.colour[row, n]].tolist())
        if shape == "circle":
            box = [TIMES * end - 0.5 for end in (x - radius, y - radius, x + radius, y + radius)]
            pen.ellipse(box, fill=fill)
        else:
            pen.polygon(corners(shape, x, y, radius), fill=fill)
    small = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


@dataclass(frozen=True)
class Scenes:
    """Captions of one kind from both sides of the split, and their images; the last ones are Pillow's."""

    captions: list[Caption]
    images: Tensor

    def first(self, count: int) -> "Scenes":
        return Scenes(self.captions[:count], self.images[:count])


@cache
def scenes(kind: str) -> Scenes:
    source = random.Random(f"scenes {kind}")
    sides = [False] if kind == "single" else [False, True]
    captions = [draw_caption(kind, source, held_out=source.choice(sides)) for _ in range(OURS + THEIRS)]
    layout = lay_out(captions[OURS:], ("pillow", kind))
    painted = torch.stack([paint(layout, row) for row in range(THEIRS)])
    return Scenes(captions, torch.cat([render(captions[:OURS], ("ours", kind)), painted]))


@cache
def verdict(kind: str) -> Verdict:
    return check(scenes(kind).images, scenes(kind).captions)


def noisy(images: Tensor, sigma: float) -> Tensor:
    fresh = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sigma * fresh).clamp(0, 1)


def wrong(captions: list[Caption], others: list[Caption], seed: int) -> list[Caption]:
    """For each caption another one that says something else."""
    source = random.Random(seed)

    def meaning(caption: Caption) -> tuple[object, str]:
        things = caption.things if caption.relation else tuple(sorted(caption.things, key=str))
        mirror = {"right of": "left of", "below": "above"}
        if caption.relation in mirror:
            return things[::-1], mirror[caption.relation]
        return things, caption.relation

    def pick(caption: Caption) -> Caption:
        while meaning(other := source.choice(others)) == meaning(caption):
            pass
        return other

    return [pick(caption) for caption in captions]


@pytest.mark.parametrize("kind", KINDS)
def test_our_drawings_show_their_captions(kind: str) -> None:
    assert verdict(kind).strict[:OURS].mean() >= 0.995


@pytest.mark.parametrize("kind", KINDS)
def test_drawings_of_an_independent_renderer_show_their_captions(kind: str) -> None:
    assert verdict(kind).strict[OURS:].mean() >= 0.995


def test_both_renderers_draw_the_same_picture() -> None:
    captions = scenes("mixed").captions[:40]
    layout = lay_out(captions, ("both",))
    painted = torch.stack([paint(layout, row) for row in range(40)])
    difference = (painted - draw(layout)).abs()
    assert difference.mean() < 0.006
    assert difference.square().mean().sqrt() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_pixel_noise_does_not_hide_the_scene(kind: str) -> None:
    part = scenes(kind).first(400)
    assert check(noisy(part.images, 0.05), part.captions).strict.mean() >= 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_caption_is_refused(kind: str) -> None:
    part = scenes(kind).first(400)
    everything = [caption for other in KINDS for caption in scenes(other).captions]
    for others in (everything, scenes(kind).captions):
        assert check(part.images, wrong(part.captions, others, 1)).strict.mean() <= 0.02


def altered(caption: Caption, what: str, source: random.Random) -> Caption:
    """The caption with one word changed, so that its own image is false."""
    first, *rest = caption.things
    change = {
        "colour": lambda: {"colour": source.choice([c for c in ("red", "green", "white") if c != first.colour])},
        "shape": lambda: {"shape": source.choice([s for s in SHAPES if s != first.shape])},
        "size": lambda: {"size": "small" if first.size == "large" else "large"},
        "count": lambda: {"count": 1 + first.count % 3},
    }
    things = (type(first)(**{**vars(first), **change[what]()}), *rest)
    return Caption(things, caption.relation)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("single", "colour"),
        ("single", "shape"),
        ("size", "size"),
        ("size", "shape"),
        ("count", "count"),
        ("two", "colour"),
        ("two", "shape"),
        ("relation", "shape"),
        ("mixed", "colour"),
    ],
)
def test_one_wrong_word_is_refused_and_costs_soft_score(kind: str, what: str) -> None:
    part, source = scenes(kind).first(150), random.Random(what)
    false = check(part.images, [altered(caption, what, source) for caption in part.captions])
    assert false.strict.mean() <= 0.02
    assert (false.soft < verdict(kind).soft[:150]).float().mean() >= 0.99


def test_the_opposite_relation_is_refused_and_costs_soft_score() -> None:
    part = scenes("relation").first(300)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    turned = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}
    for other in (opposite, turned):
        false = check(part.images, [Caption(c.things, other[c.relation]) for c in part.captions])
        assert false.strict.sum() == 0
        assert (false.soft < verdict("relation").soft[:300]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_soft_is_higher_for_the_true_caption(kind: str) -> None:
    part = scenes(kind).first(400)
    true, false = verdict(kind).soft[:400], check(part.images, wrong(part.captions, part.captions, 2)).soft
    assert true.min() > 0.9
    assert (true > false).float().mean() >= 0.99
    assert true.mean() > false.mean() + 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_soft_distinguishes_degraded_images_that_strict_does_not(kind: str) -> None:
    part = scenes(kind).first(20)
    empty = torch.tensor(BACKGROUND).view(1, 3, 1, 1)
    blur = [F.avg_pool2d(F.pad(part.images, [k // 2] * 4, mode="replicate"), k, 1) for k in (3, 5, 7, 9)]
    fade = [empty + share * (part.images - empty) for share in (0.8, 0.65, 0.58, 0.52)]
    grain = [noisy(part.images, sigma) for sigma in (0.1, 0.2, 0.3, 0.4)]
    variants = torch.stack([*blur, *fade, *grain], 1)
    soft = torch.stack(
        [check(images, [caption] * 12).soft for images, caption in zip(variants, part.captions, strict=True)]
    )
    assert ((soft >= 0) & (soft <= 1)).all()
    failed = soft < 1  # what is right is not to be made righter
    distinct = sum(len(row[rows].unique()) for row, rows in zip(soft, failed, strict=True)) / failed.sum()
    assert failed.float().mean() > 0.3
    assert distinct >= 0.85
    assert (soft[:, 3] <= soft[:, 0]).float().mean() >= 0.9  # nine pixels of blur against three
    assert soft[:, 3].mean() < soft[:, 0].mean()
    assert soft[:, 11].mean() < soft[:, 8].mean()


def test_soft_stays_in_the_unit_interval_on_anything() -> None:
    captions = [caption for kind in KINDS for caption in scenes(kind).captions[:10]]
    generator = torch.Generator().manual_seed(1)
    shape = len(captions), 3, SIDE, SIDE
    for images in (torch.rand(shape, generator=generator), torch.zeros(shape), torch.ones(shape)):
        judged = check(images, captions)
        assert ((judged.soft >= 0) & (judged.soft <= 1)).all()
        assert judged.strict.sum() == 0


def test_an_empty_image_scores_nothing() -> None:
    captions = [caption for kind in KINDS for caption in scenes(kind).captions[:10]]
    empty = torch.tensor(BACKGROUND).view(1, 3, 1, 1).expand(len(captions), 3, SIDE, SIDE)
    judged = check(empty, captions)
    assert judged.strict.sum() == 0
    assert judged.soft.max() == 0


def test_an_extra_object_is_one_too_many() -> None:
    captions = [parse("a red circle and a blue cross")] * 50
    judged = check(render(captions, ("extra",)), [parse("a red circle")] * 50)
    assert judged.strict.sum() == 0
    assert judged.soft.max() < 0.9


def test_a_verdict_does_not_depend_on_the_batch() -> None:
    captions = [caption for kind in KINDS for caption in scenes(kind).captions[:8]]
    images = noisy(torch.cat([scenes(kind).images[:8] for kind in KINDS]), 0.15)
    whole = check(images, captions)
    parts = [check(images[i : i + 7], captions[i : i + 7]) for i in range(0, 48, 7)]
    assert torch.equal(whole.strict, torch.cat([part.strict for part in parts]))
    torch.testing.assert_close(whole.soft, torch.cat([part.soft for part in parts]))


def test_components_lie_at_the_drawn_places() -> None:
    captions = scenes("count").captions[:100]
    layout = lay_out(captions, ("find",))
    shapes = find_components(draw(layout))
    assert torch.equal(shapes.total, (layout.radius > 0).sum(1).float())
    for row in range(100):
        for n in (layout.radius[row] > 0).nonzero()[:, 0].tolist():
            near = ((shapes.x[row] - layout.x[row, n]) ** 2 + (shapes.y[row] - layout.y[row, n]) ** 2).argmin()
            assert shapes.x[row, near].item() == pytest.approx(layout.x[row, n].item(), abs=0.15)
            assert shapes.y[row, near].item() == pytest.approx(layout.y[row, n].item(), abs=0.2)
            assert shapes.radius[row, near].item() == pytest.approx(layout.radius[row, n].item(), rel=0.05)


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_between_small_and_large_neither_word_holds(shape: int) -> None:
    radius = torch.tensor([2.5, 3.2, 3.9, 4.2, 4.5, 4.9, 5.9])[:, None]
    number, place = torch.full((7, 1), shape), torch.full((7, 1), 16.2)
    images = draw(Layout(*(F.pad(part, (0, 3)) for part in (number, number * 0, radius, place, place))))
    judged = {word: check(images, [parse(f"a {word} red {SHAPES[shape]}")] * 7) for word in ("small", "large", "")}
    assert judged["small"].strict.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert judged["large"].strict.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert judged[""].strict.tolist() == [1] * 7
    assert (judged["small"].soft.diff()[1:5] < 0).all()
    assert (judged["large"].soft.diff()[2:5] > 0).all()


@pytest.mark.parametrize("text", ["a red circle left of a red circle", "three red squares left of a red square"])
def test_a_relation_between_objects_of_one_look_is_refused(text: str) -> None:
    """Nothing in the picture says which of them is the first."""
    with pytest.raises(ConfigError, match="of different looks"):
        parse(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_background_of_held_out_images_is_clean(kind: str) -> None:
    assert verdict(kind).background[:OURS].max() < 1e-4
    assert verdict(kind).background[OURS:].max() < 0.003  # eight bits of colour


def test_the_background_measures_grain_in_units_of_the_pixel_range() -> None:
    images = torch.cat([scenes(kind).images[:30] for kind in KINDS])
    levels = [background(noisy(images, sigma)).mean().item() for sigma in (0.01, 0.02, 0.04)]
    assert levels == pytest.approx([0.01, 0.02, 0.04], rel=0.02)


def test_a_faint_woven_pattern_shows_in_the_background_and_not_in_the_verdict() -> None:
    part = scenes("two").first(100)
    line = torch.arange(SIDE)
    woven = 0.02 * (1 - 2 * ((line[:, None] + line) % 2).float())
    judged = check(part.images + woven, part.captions)
    assert judged.strict.mean() >= 0.99
    assert judged.background.tolist() == pytest.approx([0.02] * 100, rel=0.02)


def test_drawn_objects_leave_the_background_alone() -> None:
    one, four = (render([parse(text)] * 50, ("b",)) for text in ("a red circle", "four white triangles"))
    pattern = 0.03 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    levels = [background(images + pattern).mean().item() for images in (one, four)]
    assert levels == pytest.approx([0.03, 0.03], rel=0.05)


def patch_energy(images: Tensor) -> Tensor:
    return check(images, [parse("a red circle")] * len(images)).patch_energy


def test_patch_energy_is_that_of_what_repeats_with_the_patches():
    clean = torch.tensor(BACKGROUND)[:, None, None].expand(2, 3, 32, 32)
    x = torch.arange(32)
    woven = 0.01 * torch.cos(2 * math.pi * x / 8)  # one wave a patch: its mean square is half its amplitude's
    faster = 0.01 * torch.cos(2 * math.pi * x / 4)  # a multiple of it
    slower = 0.01 * torch.cos(2 * math.pi * x / 16)  # alternates from patch to patch
    even = torch.full((32,), 0.01)
    for pattern, energy in ((woven, 5e-5), (faster, 5e-5), (slower, 0.0), (even, 0.0)):
        assert patch_energy(clean + pattern) == pytest.approx([energy] * 2, rel=1e-4, abs=1e-9)
    grain = noisy(clean.repeat(100, 1, 1, 1), 0.02)
    assert patch_energy(grain).mean().item() == pytest.approx(0.02**2 / 16, rel=0.05)
