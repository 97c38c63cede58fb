"""The grammar reads back what it writes, and the split holds out compositions only."""

import random

import pytest

from grpaint.core import ConfigError
from grpaint.scenes.captions import (
    COLOURS,
    HELD_OUT_KINDS,
    KINDS,
    MAX_OBJECTS,
    MAX_TOKENS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Caption,
    Thing,
    draw_caption,
    parse,
    tokens,
)

OBJECTS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
SPLITS = [(kind, False) for kind in KINDS] + [(kind, True) for kind in HELD_OUT_KINDS]


def drawn(kind: str, held_out: bool, count: int) -> list[Caption]:
    source = random.Random(f"{kind} {held_out}")
    return [draw_caption(kind, source, held_out=held_out) for _ in range(count)]


@pytest.mark.parametrize(("kind", "held_out"), SPLITS)
def test_a_caption_survives_being_written_and_read(kind: str, held_out: bool) -> None:
    for caption in drawn(kind, held_out, 1000):
        assert parse(str(caption)) == caption
        assert parse(f"  {str(caption).upper()} ") == caption


@pytest.mark.parametrize(("kind", "held_out"), SPLITS)
def test_a_drawn_caption_is_of_its_kind_and_side_and_fits_the_model(kind: str, held_out: bool) -> None:
    for caption in drawn(kind, held_out, 500):
        assert (caption.kind, caption.held_out) == (kind, held_out)
        assert sum(thing.count for thing in caption.things) <= MAX_OBJECTS
        numbers = tokens(str(caption))
        assert len(numbers) == MAX_TOKENS
        words = [VOCABULARY[number] for number in numbers if number]
        assert " ".join(words) == str(caption)


def test_every_colour_and_shape_occurs_alone_in_training() -> None:
    seen = {(caption.things[0].colour, caption.things[0].shape) for caption in drawn("single", False, 1000)}
    assert seen == set(OBJECTS)
    assert not any(Caption((Thing(1, "", *pair),)).held_out for pair in seen)


@pytest.mark.parametrize("kind", HELD_OUT_KINDS)
def test_no_held_out_caption_occurs_in_training(kind: str) -> None:
    training, held_out = (set(map(str, drawn(kind, side, 2000))) for side in (False, True))
    assert len(training) > len(held_out) > 3
    assert not training & held_out


@pytest.mark.parametrize(
    ("captions", "held_out"),
    [
        pytest.param([Caption((Thing(1, size, *pair),)) for size in SIZES for pair in OBJECTS], 11, id="size"),
        pytest.param([Caption((Thing(count, "", *pair),)) for count in (2, 3, 4) for pair in OBJECTS], 14, id="count"),
    ],
)
def test_the_split_never_moves(captions: list[Caption], held_out: int) -> None:
    """A shipped model was trained on one side of it."""
    assert sum(caption.held_out for caption in captions) == held_out


def test_an_eighth_of_the_pairs_is_held_out_whatever_their_order() -> None:
    things = [Thing(1, "", *pair) for pair in OBJECTS]
    pairs = [Caption((a, b)) for a in things for b in things if a.colour != b.colour]
    assert all(Caption(pair.things[::-1]).held_out == pair.held_out for pair in pairs)
    share = sum(pair.held_out for pair in pairs) / len(pairs)
    assert share == pytest.approx(1 / 8, abs=0.04)


def test_a_held_out_pair_is_held_out_under_every_relation_size_and_count() -> None:
    for caption in drawn("two", True, 200):
        first, second = caption.things
        for relation in ("left of", "above"):
            assert Caption((first, second), relation).held_out
        assert Caption((Thing(1, "small", first.colour, first.shape), second)).held_out
        assert Caption((Thing(2, "", first.colour, first.shape), second)).held_out


def test_a_held_out_size_or_count_never_occurs_in_mixed_training_captions() -> None:
    things = [thing for caption in drawn("mixed", False, 1000) for thing in caption.things]
    assert not any(Caption((thing,)).held_out for thing in things)


def test_nothing_single_is_held_out() -> None:
    with pytest.raises(ValueError, match="no caption of kind single is held out"):
        draw_caption("single", random.Random(0), held_out=True)


@pytest.mark.parametrize("kind", ["two", "relation", "mixed"])
def test_two_things_have_two_colours_so_that_binding_is_the_task(kind: str) -> None:
    captions = drawn(kind, False, 500)
    assert all(caption.things[0].colour != caption.things[1].colour for caption in captions)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a red circle", Caption((Thing(1, "", "red", "circle"),))),
        ("an orange cross", Caption((Thing(1, "", "orange", "cross"),))),
        ("three blue crosses", Caption((Thing(3, "", "blue", "cross"),))),
        ("a large white square", Caption((Thing(1, "large", "white", "square"),))),
        ("a cyan circle and a red cross", Caption((Thing(1, "", "cyan", "circle"), Thing(1, "", "red", "cross")))),
        (
            "two green squares right of a purple triangle",
            Caption((Thing(2, "", "green", "square"), Thing(1, "", "purple", "triangle")), "right of"),
        ),
    ],
)
def test_sentences_mean_what_they_say(text: str, caption: Caption) -> None:
    assert parse(text) == caption
    assert str(caption) == text


UNREADABLE = [
    "",
    "red circle",
    "a circle",
    "a red",
    "a redd circle",
    "a red circle and",
    "and a red circle",
    "a red circles",
    "three red circle",
    "five red circles",
    "a red small circle",
    "a red circle blue",
    "a red circle near a blue square",
    "three red circles and two blue squares",
    "a red circle and a blue square and a green cross",
    "a red circle left of a blue square above a green cross",
    "a red circle\nand nothing else",
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_the_grammar_cannot_read_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f'prompt "{text}": ')
    assert 'Say "a red circle"' in message or "the built-in model does not know" in message
    assert "\n" not in message.removeprefix(f'prompt "{text}"')


@pytest.mark.parametrize(
    ("text", "word", "near"),
    [("a redd circle", "redd", "red"), ("two triangels", "triangels", "triangles"), ("A Gren square", "gren", "green")],
)
def test_an_unknown_word_is_named_with_the_nearest_known_one(text: str, word: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens(text)
    message = str(caught.value)
    assert f'does not know "{word}". Did you mean "{near}"?' in message
    assert "It knows: a an two" in message
    assert "\n" not in message


def test_a_word_like_no_other_is_named_without_a_guess() -> None:
    with pytest.raises(ConfigError, match="xylophone") as caught:
        tokens("a xylophone")
    assert "Did you mean" not in str(caught.value)


def test_a_sentence_too_long_is_refused() -> None:
    assert len(tokens(" ".join(["red"] * MAX_TOKENS))) == MAX_TOKENS
    with pytest.raises(ConfigError, match="13 words, the built-in model reads at most 12"):
        tokens(" ".join(["red"] * (MAX_TOKENS + 1)))


def test_the_empty_caption_is_all_padding() -> None:
    assert tokens("") == [0] * MAX_TOKENS


def test_words_are_known_once() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
