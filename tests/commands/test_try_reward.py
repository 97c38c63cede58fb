"""`grpaint reward try` and the reward server see the pixels and captions that training would."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from grpaint.images.collection import Collection, ReadOptions
from grpaint.images.pictures import read_picture, to_tensor
from grpaint.rewards.elsewhere.limits import Malformed
from grpaint.rewards.elsewhere.wire import unpack
from images import icc
from tiny_runs import command

REWARD = """
import json
from pathlib import Path

def mean(images, prompts):
    return images[:, :, :2].mean((1, 2, 3))

def remember(images, texts, metadata):
    with Path("remembered.jsonl").open("a") as file:
        for row in zip(texts, metadata):
            file.write(json.dumps(row) + "\\n")
    return [float(row) for row, _ in enumerate(texts)]

def likeness(images, prompts):
    return [float(image.sub(prompt.reference).abs().max()) for image, prompt in zip(images, prompts)]
likeness.needs_reference = True
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("mine.py").write_text(REWARD)
    Path("pictures").mkdir()


def odd_pictures(folder):
    """Pictures whose stored numbers are not the pixels that one sees, by what is odd about them."""
    half = Image.new("RGB", (12, 8), "yellow")
    half.paste("navy", (0, 0, 5, 8))
    for orientation in (3, 6, 8):
        exif = half.getexif()
        exif[0x0112] = orientation
        half.save(folder / f"turned{orientation}.jpg", exif=exif, quality=95)
    half.convert("CMYK").save(folder / "cmyk.tif")
    half.convert("P").save(folder / "palette.gif")
    levels = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    Image.fromarray(levels).save(folder / "grey16.png")
    for name, alpha in (("clear", 0), ("half", 128)):
        Image.new("RGBA", (12, 8), (0, 40, 0, alpha)).save(folder / f"{name}.png")
    Image.new("P", (12, 8), 0).save(folder / "clear-palette.png", transparency=0)
    Image.fromarray(levels).save(folder / "grey16-clear.png", transparency=0)
    half.save(folder / "p3.png", icc_profile=icc.rgb(icc.DISPLAY_P3, 2.2))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * (2 << 20), zip=True)
    half.save(folder / "text.png", pnginfo=text)
    return folder


def remembered():
    """(caption, metadata) by picture name, of the prompts that the reward got; its first call is no score."""
    rows = [json.loads(line) for line in Path("remembered.jsonl").read_text().splitlines()]
    return {metadata["file"]: (text, metadata) for text, metadata in rows}


def test_scores_are_those_of_the_pixels_that_training_reads():
    odd_pictures(Path("pictures"))
    collection = Collection(Path("pictures"), "data.train", ReadOptions("text", "image", None))
    assert not collection.bad_files
    expected = {
        entry.name: to_tensor([read_picture(collection.source.read(entry))])[0, :, :2].mean().item()
        for entry in collection.entries
    }
    report = json.loads(command("reward", "try", "mine.py:mean", "--images", "pictures", "--json").out)
    assert len(expected) == 12
    assert report["scores"] == pytest.approx(expected, abs=1e-6)
    assert report["scores"]["clear.png"] == 1  # laid on white
    assert 0 < report["scores"]["grey16.png"] < 0.2  # its upper rows; the lowest 8 bits alone would be noise about 0.5
    assert report["scores"]["turned6.jpg"] < 0.25 < report["scores"]["turned8.jpg"]  # the left end is up, or the right


def test_references_are_read_in_the_same_way():
    for folder in ("pictures", "references"):
        Path(folder).mkdir(exist_ok=True)
        odd_pictures(Path(folder))
    words = ("--images", "pictures", "--references", "references", "--json")
    report = json.loads(command("reward", "try", "mine.py:likeness", *words).out)
    assert set(report["scores"].values()) == {0.0}
    Path("references/half.png").write_bytes(b"no picture")
    end = command("reward", "try", "mine.py:likeness", *words)
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "references/half.png: not a picture" in end.err


def test_pictures_that_reach_the_reward_server_are_read_in_the_same_way():
    for file in sorted(odd_pictures(Path("pictures")).glob("*.png")):
        body = {"images": [base64.b64encode(file.read_bytes()).decode()], "prompts": ["a"]}
        images, _ = unpack(json.dumps(body).encode(), "application/json")
        assert torch.equal(images, to_tensor([read_picture(file.read_bytes())]))


def test_the_reward_server_takes_png_alone_and_no_film():
    still, film = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 4)).save(still, "BMP")
    Image.new("RGB", (4, 4)).save(film, "PNG", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    for file, reason in ((still, "no PNG"), (film, "animated")):
        body = {"images": [base64.b64encode(file.getvalue()).decode()], "prompts": ["a"]}
        with pytest.raises(Malformed, match=reason):
            unpack(json.dumps(body).encode(), "application/json")


def test_captions_beside_pictures_are_those_of_training():
    places = ["a.png", "b.png", "c.png", "deeper/d.png", "deeper/e.png"]
    Path("pictures/deeper").mkdir()
    for number, name in enumerate(places):
        Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(f"pictures/{name}")
    Path("pictures/a.txt").write_bytes("\ufeffa red circle\r\n".encode())
    Path("pictures/b.json").write_text('{"text": "two blue squares", "rating": 4}')
    Path("pictures/c.png.json").write_text('{"text": " a green cross "}')
    lines = [{"file_name": "d.png", "text": "a\u2028line", "by": "me"}, {"file_name": "e.png", "text": "the last"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path("pictures/deeper/metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert command("reward", "try", "mine.py:remember", "--images", "pictures").code == 0
    items = Collection(Path("pictures"), "data.train", ReadOptions("text", "image", None)).images
    assert [item.entry.name for item in items] == places
    prompts = remembered()
    assert {name: text for name, (text, _) in prompts.items()} == {item.entry.name: item.caption for item in items}
    assert prompts["a.png"][0] == "a red circle"
    assert prompts["deeper/d.png"] == ("a\u2028line", {"text": "a\u2028line", "by": "me", "file": "deeper/d.png"})


def test_a_file_of_captions_goes_before_those_beside_pictures():
    for name in "ab":
        Image.new("RGB", (4, 4)).save(f"pictures/{name}.png")
        Path(f"pictures/{name}.txt").write_text("beside it")
    Path("captions.txt").write_bytes("\ufeffa.png\tfrom the file\r\n\r\nelsewhere.png\tpassed over\r\n".encode())
    words = ("--images", "pictures", "--prompts", "captions.txt")
    assert command("reward", "try", "mine.py:remember", *words).code == 0
    assert {name: text for name, (text, _) in remembered().items()} == {"a.png": "from the file", "b.png": "beside it"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.CSV", "\ufefffile_name,text\na.png,one\nb\\c.png,two\n"),
        ("c.JSONL", '{"file_name": "./a.png", "text": "one"}\n{"file_name": "b\\\\c.png", "text": "two"}\n'),
        ("c.txt", "./a.png\tone\rb\\c.png\ttwo\r"),
    ],
)
def test_captions_are_those_of_a_picture_however_its_name_is_spelt(name, text):
    Path("pictures/b").mkdir()
    for place in ("a.png", "b/c.png"):
        Image.new("RGB", (4, 4)).save(f"pictures/{place}")
    Path(name).write_bytes(text.encode())
    assert command("reward", "try", "mine.py:remember", "--images", "pictures", "--prompts", name).code == 0
    assert {name: text for name, (text, _) in remembered().items()} == {"a.png": "one", "b/c.png": "two"}


def test_pictures_that_are_not_scored_and_captions_of_none_are_named():
    for name in ("a.png", "._a.png", "b.heic"):
        Image.new("RGB", (4, 4)).save(f"pictures/{name}", "PNG")
    Path("captions.txt").write_text("a.png\tone\nelsewhere.png\ttwo\n")
    words = ("--images", "pictures", "--prompts", "captions.txt")
    report = json.loads(command("reward", "try", "mine.py:mean", *words, "--json").out)
    assert (set(report["left_out"]), report["captions_of_no_image"]) == ({"._a.png", "b.heic"}, ["elsewhere.png"])
    out = command("reward", "try", "mine.py:mean", *words).out
    assert all(word in out for word in ("._a.png: hidden", "b.heic: a format", "the caption of elsewhere.png"))
    Path("pictures/a.png").unlink()
    end = command("reward", "try", "mine.py:mean", "--images", "pictures")
    assert (end.code, "no pictures in it" in end.err, "b.heic: a format that is not read" in end.err) == (2, True, True)


def test_a_caption_of_null_or_none_is_none():
    for name in "ab":
        Image.new("RGB", (4, 4)).save(f"pictures/{name}.png")
    Path("pictures/a.json").write_text('{"text": null}')
    Path("pictures/b.txt").write_text("None")
    assert command("reward", "try", "mine.py:remember", "--images", "pictures").code == 0
    assert {name: text for name, (text, _) in remembered().items()} == {"a.png": "", "b.png": ""}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.jsonl", '{"file_name": "a.png", "text": null}\n', 'line 1 needs a "file_name" and a "text"'),
        ("c.jsonl", '\n{"text": "a"}\n', 'line 2 needs a "file_name" and a "text"'),
        ("c.jsonl", "{\n", "c.jsonl:1: not JSON"),
        ("c.txt", "a.png\tone\na.png\ttwo\n", "line 2 is a second one for a.png"),
        ("c.txt", "a.png one\n", "line 1 is not NAME<tab>CAPTION"),
    ],
)
def test_a_caption_that_cannot_be_read_is_one_line(name, text, reason):
    Image.new("RGB", (4, 4)).save("pictures/a.png")
    Path(name).write_text(text)
    end = command("reward", "try", "mine.py:remember", "--images", "pictures", "--prompts", name)
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert reason in end.err


def test_captions_that_differ_are_refused_as_in_training():
    Image.new("RGB", (4, 4)).save("pictures/a.png")
    Path("pictures/a.txt").write_text("one")
    Path("pictures/a.json").write_text('{"text": "another"}')
    end = command("reward", "try", "mine.py:remember", "--images", "pictures")
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "another caption" in end.err


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nnot much"])
def test_a_bad_picture_ends_the_trial_with_its_name(content):
    Image.new("RGB", (4, 4)).save("pictures/a.png")
    Path("pictures/b.png").write_bytes(content)
    end = command("reward", "try", "mine.py:mean", "--images", "pictures")
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "pictures/b.png: not a picture that can be read" in end.err
