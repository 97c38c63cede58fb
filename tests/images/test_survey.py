"""What a scan says of a data set: duplicates, bad files, captions in a model's own tokens; and training in buckets."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import images.making as making
import tiny_runs
from grpaint.backends.counting import token_counts
from grpaint.backends.diffusers import Diffusers
from grpaint.backends.scenes import Scenes
from grpaint.core.errors import ConfigError
from grpaint.core.runtime import Runtime
from grpaint.images.data import ImageData
from grpaint.images.survey import contact_sheet, survey, write_captions
from grpaint.images.tags import TagSettings
from grpaint.judge import captioned
from grpaint.recipe.config import open_recipe
from tiny_pipelines import save_all
from tiny_runs import command


def scene(path, name, seed, size=(64, 48), **how):
    """A picture of a few patches; one seed is one motif."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).save(path / name, **how)
    (path / name).with_suffix(".txt").write_text(f"motif {seed}")


@pytest.fixture
def mixed(tmp_path):
    """Twelve motifs; 0 twice, 1 again as a JPEG of another size, and two bad files."""
    path = tmp_path / "set"
    path.mkdir()
    for seed in range(12):
        scene(path, f"{seed:02d}.png", seed)
    (path / "again.png").write_bytes((path / "00.png").read_bytes())
    (path / "again.txt").write_text("motif 0")
    scene(path, "like.jpg", 1, (96, 72), quality=80)
    (path / "bad.png").write_bytes(b"")
    (path / "page.png").write_text("<html>")
    return path


def test_duplicates_and_bad_files_are_listed(mixed):
    report = survey(ImageData(str(mixed), held_out_share=0.3, resolution=64), {"words": len})
    (one,) = report["collections"]
    assert (one["images"], report["captioned"]) == (16, 14)
    assert one["left_out"] == {"empty file": 1, "not an image that Pillow reads": 1}
    assert one["left_out_files"]["bad.png"] == "empty file"
    assert report["duplicates"] == {"exact": [["00.png", "again.png"]], "near": [("01.png", "like.jpg")]}
    assert report["sides"]["width"] == [64, 64, 96]
    assert report["captions"]["different"] == 12
    assert report["captions"]["lengths"]["words"][0] == len("motif 0")


@pytest.mark.parametrize("sets", [[], ["data.tags={}"]], ids=["text", "tags"])
def test_a_scan_reports_missing_captions_and_continues(mixed, sets):
    (mixed / "03.txt").unlink()
    with tiny_runs.folder(mixed.parent):
        end = command("data", "scan", "set", "--sheet", "sheet.png", sets=sets)
        assert end.code == 0
        for word in ("16 images", "without a caption: 03.png", "left out: bad.png: empty file", "13 whole"):
            assert word in end.out
        assert "the same bytes: 00.png, again.png" in end.out
        assert "look alike: 01.png, like.jpg" in end.out
        report = json.loads(command("data", "scan", "set", "--json", sets=["data.resolution=64"]).out)
        assert report["buckets"] == {"64x64": 13}
        (mixed.parent / "none").mkdir()
        end = command("data", "scan", "none")
        assert (end.code, "0 whole" in end.out) == (1, True)


def test_a_sheet_that_is_no_png_is_refused(tmp_path):
    with tiny_runs.folder(tmp_path):
        end = command("data", "scan", ".", "--sheet", "sheet")
    assert end.code == 2
    assert "--sheet sheet: the contact sheet is a PNG; name a file that ends in .png." in end.err


def test_the_sheet_shows_every_picture(mixed):
    source = ImageData(str(mixed), held_out_share=0.3)
    items = source.collections[0].images
    page = contact_sheet(items, side=32, columns=4)
    assert page.size == (4 * 36 + 4, 4 * 36 + 4)  # 14 pictures in rows of 4
    corner = np.asarray(page)[4:36, 4:36]
    assert (corner != 255).any()
    assert (np.asarray(page)[-30:, -60:] == 255).all()  # the two places that stay free


def test_captions_are_written_as_training_will_have_them(mixed, tmp_path):
    tags = TagSettings(shuffle="all")
    for file in mixed.glob("*.txt"):
        file.write_text(f"a_b, c, d, e, {file.stem}")
    source = ImageData(str(mixed), held_out_share=0.3, tags=tags)
    assert write_captions(source, tmp_path / "plain.txt", 0) == len(source.training)
    names = [line.split("\t") for line in (tmp_path / "plain.txt").read_text().splitlines()]
    assert all(caption == f"a b, c, d, e, {name.split('.')[0]}" for name, caption in names)
    write_captions(source, tmp_path / "drawn.txt", 3)
    drawn = [line.split("\t") for line in (tmp_path / "drawn.txt").read_text().splitlines()]
    assert Counter(name for name, _ in drawn) == dict.fromkeys((name for name, _ in names), 3)
    assert len({caption for _, caption in drawn}) > len(names)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("pipelines"), ("sd15", "sd3"))


def test_a_listing_has_a_line_an_image_whatever_the_captions_hold(tmp_path):
    for number, text in enumerate(("one\n\ntwo\tthree", "a\u2028b\x0cc", "plain, 円")):
        scene(tmp_path, f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    assert write_captions(ImageData(str(tmp_path), held_out_path=str(tmp_path)), tmp_path / "captions.txt", 2) == 6
    lines = (tmp_path / "captions.txt").read_text(encoding="utf-8").splitlines()
    escaped = [r"0.png-one\n\ntwo\tthree", r"1.png-a\u2028b\x0cc", "2.png-plain, 円"]
    assert lines == [line.replace("-", "\t", 1) for line in escaped for _ in range(2)]


def test_captions_are_counted_in_the_models_own_tokens(pipelines):
    counts = token_counts(Diffusers(str(pipelines["sd3"])))
    assert {"tokenizer", "tokenizer_2", "tokenizer_3"} == counts.keys()
    assert counts["tokenizer"]("abc de") == 5  # its vocabulary is letters
    assert token_counts(Diffusers("some/where"))["words"]("abc de") == 2


RECIPE = """
stage = "sft"
[model]
kind = "diffusers"
base = "{base}"
lora = {{ rank = 4 }}
[data]
kind = "images"
train = "set"
held_out_share = 0.3
resolution = 32
buckets = true
bucket_step = 16
[objective]
target = "epsilon"
[train]
iterations = 8
batch = 2
learning_rate = 1e-3
"""


def test_a_pipeline_trains_in_buckets(mixed, pipelines):
    """The supervised loop, without the evaluation that data of this kind has still to be given."""
    with tiny_runs.folder(mixed.parent):
        (mixed.parent / "a.toml").write_text(RECIPE.format(base=pipelines["sd15"]))
        for n in range(6):
            scene(mixed, f"tall{n}.png", 50 + n, (40, 90))
        recipe, _ = open_recipe("a.toml", "sft")
        policy = recipe.model.load(Runtime())
        shapes = set()
        for n in range(8):
            pair = recipe.data.batch(2, n, 0)
            images, prompts = pair.images(), pair.prompts
            batch = captioned(policy, images, prompts, iteration=n, seed=0)
            shapes.add(tuple(images.shape[-2:]))
            assert all(term.loss.isfinite() for term in recipe.objective(policy, batch, torch.zeros(2)))
        assert len(shapes) > 1
        report = json.loads(command("data", "scan", "a.toml", "--json").out)
        assert "tokenizer" in report["captions"]["lengths"]


def test_images_of_another_size_than_the_built_in_models_are_refused_in_a_line(tmp_path):
    policy = Scenes(start="random").load(Runtime())
    with pytest.raises(ConfigError, match=r"images of 64 x 48 pixels; .* Set data.resolution = 32"):
        policy.encode_images(torch.zeros(1, 3, 48, 64))
    with tiny_runs.folder(tmp_path):
        making.folder(tmp_path / "set")
        sets = ["data.kind=images", "data.train=set", "data.held_out_share=0.3", "data.resolution=64"]
        reference = ["plan.start.kind=reference", "data.references=true", *sets]
        end = command("show", "scenes-epsilon/sft-flow-grpo", sets=reference)
        assert end.code == 2
        assert "images of 64 x 64 pixels; the built-in model's have 32 x 32" in end.err
