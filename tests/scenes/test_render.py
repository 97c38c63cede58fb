"""Layouts fit their captions, and an image depends on its caption and key alone."""

import random

import pytest
import torch

from grpaint.scenes.captions import COLOURS, KINDS, SHAPES, Caption, Thing, draw_caption, parse
from grpaint.scenes.render import GAP, Layout, draw, keyed_random, lay_out, radius_range, render
from grpaint.scenes.shapes import BACKGROUND, PALETTE, REACH, SIDE, coverage, outlines, pixel_centres, shape_coverage


def captions(kind: str, count: int) -> list[Caption]:
    source = random.Random(kind)
    return [draw_caption(kind, source, held_out=False) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_holds_what_the_caption_says(kind: str) -> None:
    texts = captions(kind, 100)
    layout = lay_out(texts, (0, kind))
    for row, caption in enumerate(texts):
        expected = [(thing.colour, thing.shape, thing) for thing in caption.things for _ in range(thing.count)]
        there = int((layout.radius[row] > 0).sum())
        assert there == len(expected)
        for slot, (colour, shape, thing) in enumerate(expected):
            assert (COLOURS[layout.colour[row, slot]], SHAPES[layout.shape[row, slot]]) == (colour, shape)
            low, high = radius_range(thing, there)
            assert low - 1e-4 <= layout.radius[row, slot] <= high + 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_objects_lie_apart_and_inside(kind: str) -> None:
    layout = lay_out(captions(kind, 100), (1, kind))
    there = layout.radius > 0
    wide, up, down = (REACH[layout.shape][..., k] * layout.radius for k in range(3))
    low, high = GAP / 2 - 1e-3, SIDE - GAP / 2 + 1e-3
    for start, end in ((layout.x - wide, layout.x + wide), (layout.y - up, layout.y + down)):
        assert (start[there] >= low).all()
        assert (end[there] <= high).all()
    for i in range(4):
        for j in range(i):
            both = there[:, i] & there[:, j]
            beside = (layout.x[:, i] - layout.x[:, j]).abs() - wide[:, i] - wide[:, j]
            above = torch.where(
                layout.y[:, i] < layout.y[:, j],
                layout.y[:, j] - up[:, j] - layout.y[:, i] - down[:, i],
                layout.y[:, i] - up[:, i] - layout.y[:, j] - down[:, j],
            )
            assert (torch.maximum(beside, above)[both] >= GAP - 1e-3).all()


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left of", "x", 1), ("right of", "x", -1), ("above", "y", 1), ("below", "y", -1)]
)
def test_relations_hold(relation: str, axis: str, sign: int) -> None:
    scenes = [parse(f"two red squares {relation} a blue circle"), parse(f"a red cross {relation} a cyan triangle")] * 30
    layout = lay_out(scenes, (2, relation))
    place = getattr(layout, axis) * sign
    for row, caption in enumerate(scenes):
        first = caption.things[0].count
        assert place[row, :first].max() + GAP < place[row, first]


def test_an_image_depends_on_its_caption_and_its_place_in_the_key_alone() -> None:
    texts = [caption for kind in KINDS for caption in captions(kind, 6)]
    whole = render(texts, (3,))
    assert torch.equal(render(texts[:7], (3,)), whole[:7])
    others = [*texts[:20][::-1], *texts[20:]]
    assert torch.equal(render(others, (3,))[20:], whole[20:])
    assert torch.equal(render(texts, (3,)), whole)
    assert torch.equal(render(texts[5:9], (3,), first=5), whole[5:9])


def test_other_keys_draw_other_images() -> None:
    texts = captions("single", 20)
    assert not any(map(torch.equal, render(texts, (4,)), render(texts, (5,))))
    same = render([texts[0]] * 20, (4,))
    assert len({image.numpy().tobytes() for image in same}) == 20


def test_drawing_reads_and_moves_no_global_state() -> None:
    state = torch.random.get_rng_state()
    render(captions("mixed", 5), (6,))
    assert torch.equal(state, torch.random.get_rng_state())


def test_images_lie_between_background_and_colours() -> None:
    images = render(captions("two", 50), (7,))
    assert images.shape == (50, 3, SIDE, SIDE)
    assert images.dtype == torch.float32
    low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
    assert (low >= torch.tensor(BACKGROUND).minimum(PALETTE.amin(0)) - 1e-6).all()
    assert (high <= PALETTE.amax(0) + 1e-6).all()


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
@pytest.mark.parametrize("radius", [2.5, 4.0, 6.0, 9.0])
def test_every_shape_has_the_area_and_the_centre_that_it_says(shape: int, radius: float) -> None:
    cover = shape_coverage(torch.tensor([shape]), torch.tensor([16.3]), torch.tensor([17.6]), torch.tensor([radius]))[0]
    x, y = pixel_centres()
    area = cover.sum().item()
    assert area == pytest.approx(torch.pi * radius**2, rel=0.05)
    assert ((cover * x).sum() / area).item() == pytest.approx(16.3, abs=0.1)
    assert ((cover * y).sum() / area).item() == pytest.approx(17.6, abs=0.15)


@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
def test_reach_is_the_extent_of_a_shape(shape: int) -> None:
    line = torch.linspace(-3, 3, 1201)
    y, x = torch.meshgrid(line, line, indexing="ij")
    inside = outlines(x, y, torch.ones(1, 1))[shape] <= 0
    ends = x[inside].max(), -y[inside].min(), y[inside].max()
    assert [end.item() for end in ends] == pytest.approx(REACH[shape].tolist(), abs=0.006)
    assert inside.float().mean().item() * 36 == pytest.approx(torch.pi, rel=0.01)


def test_coverage_falls_over_one_pixel() -> None:
    distance = torch.tensor([-3.0, -0.5, -0.25, 0.0, 0.25, 0.5, 3.0])
    assert coverage(distance).tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_an_empty_layout_is_the_background() -> None:
    nothing = torch.zeros(2, 4)
    image = draw(Layout(nothing.long(), nothing.long(), nothing, nothing, nothing))
    assert torch.equal(image, torch.tensor(BACKGROUND).view(1, 3, 1, 1).expand(2, 3, SIDE, SIDE))


def test_the_widest_captions_that_are_drawn_find_a_layout() -> None:
    pairs = [(shape, other) for shape in SHAPES for other in SHAPES]
    sizes = [(Thing(1, "large", "red", a), Thing(1, "small", "blue", b)) for a, b in pairs]
    counts = [(Thing(2, "", "red", a), Thing(1, "", "blue", b)) for a, b in pairs]
    hard = [Caption(things, relation) for things in sizes + counts for relation in ("left of", "above")]
    assert torch.equal((lay_out(hard, (8,)).radius > 0).sum(1), torch.tensor([2] * 32 + [3] * 32))


def test_choices_belong_to_their_key() -> None:
    assert keyed_random(1, "a").random() == keyed_random(1, "a").random()
    assert keyed_random(1, "a").random() != keyed_random(2, "a").random()
