"""What text is worth that an engine read, and what detections are worth to GenEval's requirements."""

import shutil

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from grpaint.core import Prompt, RewardError
from grpaint.rewards.geneval import Detection, GenEval, check_requirements, main_colour, relations
from grpaint.rewards.ocr import ENGINES, Ocr, distance, legibility, target_text


def to_tensor(picture):
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "b", 1)],
)
def test_edit_distance(one, other, edits):
    assert distance(one, other) == distance(other, one) == edits


@pytest.mark.parametrize(
    ("read", "exact", "edit"),
    [
        ("Open Now", 1, 1),
        ("OPEN\nNOW", 1, 1),
        ("\uff2f\uff30\uff25\uff2e now", 1, 1),  # full width
        ("Open Nov", 0, 6 / 7),
        ("", 0, 0),
        ("zzzzzzzzzzz", 0, 0),
        ("open now open now open now", 0, 0),
    ],
)
def test_legibility(read, exact, edit):
    assert legibility(read, "Open now", "exact") == exact
    assert legibility(read, "Open now", "edit") == pytest.approx(edit)


def test_the_target_text_of_a_prompt():
    assert target_text(Prompt('A sign that says "Open" and "Now"')) == "Open Now"
    assert target_text(Prompt("A sign that says \u201cOpen\u201d")) == "Open"
    assert target_text(Prompt('A "sign"', {"text": "Open"})) == "Open"
    caption = 'A sign that says "Open"'
    assert target_text(Prompt(caption, {"text": caption})) == "Open"  # the caption column of captioned images
    assert target_text(Prompt("Open", {"text": "Open"})) == "Open"
    with pytest.raises(ValueError, match="names no text"):
        target_text(Prompt("A sign"))


def signs(*texts):
    """Pictures of texts, and prompts that ask for the first."""
    images = []
    for text in texts:
        picture = Image.new("RGB", (360, 100), "white")
        ImageDraw.Draw(picture).text((20, 20), text, "black", ImageFont.load_default(50))
        images.append(to_tensor(picture))
    return torch.stack(images), [Prompt(f'A sign that says "{texts[0]}"')] * len(texts)


def test_an_engine_of_your_own_reads(tmp_path):
    (tmp_path / "mine.py").write_text("def text_of(image):\n    return f'{image.width} x {image.height}'\n")
    reward = Ocr(engine=f"{tmp_path}/mine.py:text_of")
    images, prompts = torch.zeros(2, 3, 8, 16), [Prompt('says "16x8"'), Prompt('says "99"')]
    try:
        assert reward(images, prompts).tolist() == [1.0, 0.0]
        with pytest.raises(ValueError, match="names no text"):
            reward(images, [Prompt("nothing")] * 2)
    finally:
        reward.stop()


@pytest.mark.skipif(not shutil.which("tesseract"), reason="needs the tesseract program")
def test_tesseract_reads_what_is_written():
    reward = Ocr(engine="tesseract")
    try:
        scores = reward(*signs("GRPAINT", "GRPALNT", "zebra"))
    finally:
        reward.stop()
    assert scores[0] == 1
    assert scores[0] > scores[1] > scores[2]


def test_a_missing_engine_says_so(monkeypatch):
    assert ENGINES.is_file()
    monkeypatch.setenv("PATH", "/nowhere")
    reward = Ocr(engine="tesseract")
    try:
        with pytest.raises(RewardError, match="it raised FileNotFoundError"):
            reward(*signs("A"))
    finally:
        reward.stop()


# -- objects -----------------------------------------------------------------------------------------------------

DOG, CAT = Detection("dog", 0.9, (0, 0, 10, 10), "brown"), Detection("cat", 0.8, (30, 0, 40, 10), "black")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((30, 0, 40, 10), {"left of"}),
        ((-40, 0, -30, 10), {"right of"}),
        ((0, 30, 10, 40), {"above"}),
        ((0, -40, 10, -30), {"below"}),
        ((30, 30, 40, 40), {"left of", "above"}),
        ((30, 12, 40, 22), {"left of"}),  # 60 degrees and more off the other axis
        ((1, 1, 11, 11), set()),  # nearly at one place
        ((0, 0, 10, 10), set()),
    ],
)
def test_relations_follow_positions(box, expected):
    assert relations(DOG, Detection("cat", 1.0, box)) == expected


def include(*entries, **more):
    return {"include": [dict(zip(("class", "count"), entry[:2], strict=True)) | (entry[2] if len(entry) > 2 else {}) for
                        entry in entries], **more}  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "held"),
    [
        (include(("dog", 1)), [True]),
        (include(("dog", 2)), [False]),
        (include(("dog", 1), ("cat", 1)), [True, True]),
        (include(("dog", 1, {"color": "brown"}), ("cat", 1, {"color": "white"})), [True, False]),
        (include(("dog", 1), ("cat", 1, {"position": ["right of", 0]})), [True, True]),
        (include(("dog", 1), ("cat", 1, {"position": ["left of", 0]})), [True, False]),
        (include(("dog", 3), ("cat", 1, {"position": ["right of", 0]})), [False, False]),  # nothing to be right of
        (include(("dog", 1), exclude=[{"class": "dog", "count": 2}]), [True, True]),
        (include(("dog", 1), exclude=[{"class": "dog", "count": 1}]), [True, False]),
        (include(("bird", 1)), [False]),
    ],
)
def test_requirements(metadata, held):
    assert check_requirements(torch.zeros(3, 50, 50), [DOG, CAT], metadata) == held


def test_the_surest_detections_are_the_ones_that_count():
    unsure = Detection("dog", 0.4, (100, 0, 110, 10), "white")
    metadata = include(("dog", 1, {"color": "brown"}), ("cat", 1, {"position": ["right of", 0]}))
    assert check_requirements(torch.zeros(3, 50, 50), [unsure, DOG, CAT], metadata) == [True, True]


def test_the_main_colour_of_a_box():
    picture = Image.new("RGB", (40, 20), (0, 0, 255))
    ImageDraw.Draw(picture).rectangle((20, 0, 39, 19), fill=(255, 0, 0))
    image = to_tensor(picture)
    assert main_colour(image, (0, 0, 19, 20)) == "blue"
    assert main_colour(image, (20, 0, 40, 20)) == "red"
    assert main_colour(image, (39.9, -5, 60, 90)) == "red"  # beyond the border


DETECTOR = """
import numpy

def blobs(image):  # red and blue columns of a picture
    pixels, found = numpy.asarray(image).astype(int), []
    for label, channel in (("stop sign", 0), ("car", 2)):
        columns = (pixels[..., channel] > 200).all(0).nonzero()[0]
        runs = numpy.split(columns, (numpy.diff(columns) > 1).nonzero()[0] + 1) if len(columns) else []
        found += [(label, 0.95, (run[0], 0, run[-1] + 1, len(pixels))) for run in runs]
    return found

def broken(image):
    return [("car", "sure", (0, 0, 1, 1))]
"""


def bars(*bars):
    picture = Image.new("RGB", (40, 20), "black")
    for left, colour in bars:
        ImageDraw.Draw(picture).rectangle((left, 0, left + 4, 19), fill=colour)
    return to_tensor(picture)


def test_a_detector_of_your_own_in_a_worker(tmp_path):
    (tmp_path / "mine.py").write_text(DETECTOR)
    both = include(("stop sign", 1, {"color": "red"}), ("car", 2, {"position": ["right of", 0]}), tag="position")
    images = torch.stack(
        [bars((2, "red"), (20, "blue"), (30, "blue")), bars((2, "red"), (20, "blue")), bars((36, "red"), (2, "blue"))]
    )
    for measure, expected in (("strict", [1.0, 0.0, 0.0]), ("share", [1.0, 0.5, 0.5])):
        reward = GenEval(detector=f"{tmp_path}/mine.py:blobs", measure=measure)
        try:
            assert reward(images, [Prompt("a stop sign and two cars", both)] * 3).tolist() == expected
            with pytest.raises(ValueError, match="no line of GenEval's jsonl"):
                reward(images, [Prompt("cars", {"include": [{"class": "car"}]})] * 3)
        finally:
            reward.stop()


def test_counting_needs_higher_detection_scores(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def d(image):\n    return [('car', 0.5, (0, 0, 9, 9)), ('car', 0.95, (9, 0, 9, 9))]\n"
    )
    reward = GenEval(detector=f"{tmp_path}/mine.py:d")
    prompts = [Prompt("one car", include(("car", 1), exclude=[{"class": "car", "count": 2}], tag=tag)) for tag in
               ("counting", "single_object")]  # fmt: skip
    try:
        assert reward(torch.zeros(2, 3, 10, 10), prompts).tolist() == [1.0, 0.0]
    finally:
        reward.stop()


def test_a_detector_with_a_wrong_answer_is_reported(tmp_path):
    (tmp_path / "mine.py").write_text(DETECTOR)
    reward = GenEval(detector=f"{tmp_path}/mine.py:broken")
    try:
        with pytest.raises(RewardError, match=r"its detector returned .*'sure'"):
            reward(torch.zeros(1, 3, 10, 10), [Prompt("a car", include(("car", 1)))])
    finally:
        reward.stop()
