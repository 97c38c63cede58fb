"""Drawn scenes as a booru would hold them, through every stage and command."""

import json
from pathlib import Path

import pytest

import tiny_runs
from grpaint.core.errors import ConfigError
from grpaint.images.data import DrawnImages
from grpaint.images.drawn import draw_set, general_tags
from grpaint.images.survey import survey
from grpaint.images.tags import TagSettings
from grpaint.rewards.scenes import SceneChecker, SceneScorer
from grpaint.scenes.captions import parse, tokens
from grpaint.scenes.world import caption_of
from tiny_runs import QUICK, command

EXAMPLES = Path(__file__).parent.parent.parent / "examples/tagged-scenes"
SMALL = ["evaluate.prompts=4", "evaluate.steps=2", "evaluate.probe=4", "model.start=random", "train.iterations=2"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """200 pictures and 24 held-out ones."""
    path = tmp_path_factory.mktemp("drawn") / "drawn"
    draw_set(path, 200, 24, 0, 32, str)
    return path


def tagged(path, **settings):
    tags = TagSettings(categories=("general",), separator=" ", shuffle="all")
    settings = {"held_out_path": str(path / "held-out"), "tags": tags, "caption_dropout": 0.0} | settings
    return DrawnImages(str(path / "train"), **settings)


def test_a_set_is_a_function_of_its_seed_and_grows_by_count(drawn, tmp_path):
    draw_set(tmp_path / "fewer", 30, 4, 0, 32, str)
    draw_set(tmp_path / "other", 4, 4, 1, 32, str)
    files = sorted(file.relative_to(tmp_path / "fewer") for file in (tmp_path / "fewer").rglob("*.*"))
    assert len(files) == 68
    for file in files:
        assert (tmp_path / "fewer" / file).read_bytes() == (drawn / file).read_bytes(), file
    assert (tmp_path / "other/train/000000.png").read_bytes() != (drawn / "train/000000.png").read_bytes()
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        draw_set(drawn, 1, 1, 0, 32, str)


def test_a_larger_picture_shows_the_same_scene(drawn, tmp_path):
    draw_set(tmp_path / "large", 12, 1, 0, 96, str)
    source = tagged(tmp_path / "large", held_out_path=str(drawn / "held-out"), resolution=96)
    assert {item.size for item in source.training} == {(96, 96)}
    small = tagged(tmp_path / "large", held_out_path=str(drawn / "held-out"))  # brought to 32 pixels
    batch = small.batch(12, 0, 0)
    images, prompts = batch.images(), batch.prompts
    assert small.measures(images, prompts)["soft"].mean() > 0.95


def test_every_picture_shows_what_its_sidecar_says(drawn):
    source = tagged(drawn)
    batch = source.batch(200, 0, 0)
    images, prompts = batch.images(), batch.prompts
    measures = source.measures(images, prompts)
    assert source.score in measures
    assert measures["strict"].mean() == 1
    assert {source.category(prompt) for prompt in prompts} == {"single", "size", "two", "count", "relation", "mixed"}
    assert SceneChecker()(images, prompts).min() == 1
    right, wrong = (SceneScorer()(pictures, prompts).mean() for pictures in (images, images.roll(1, 0)))
    assert right > wrong + 0.5


def test_no_caption_of_training_is_held_out_and_the_model_reads_them_all(drawn):
    source = tagged(drawn)
    training, judged = source.prompts(200, 0, 0), source.held_out(24, 0)
    assert not any(caption_of(prompt).held_out for prompt in training)
    assert all(caption_of(prompt).held_out for prompt in judged)
    for prompt in training + judged:
        assert any(tokens(prompt.text))  # raises at a word that the model does not know, or at too many


def test_tags_say_all_that_the_sentence_says_in_any_order():
    caption = parse("two red circles right of a blue square")
    assert general_tags(caption) == ["two_red_circles", "right_of_blue_square"]
    assert general_tags(parse("an orange cross and a small white circle")) == ["orange_cross", "small_white_circle"]


def test_the_sidecars_have_every_category_rating_and_score(drawn):
    facts = [json.loads(file.read_text()) for file in sorted((drawn / "train").glob("*.json"))]
    assert {one["rating"] for one in facts} == {"g", "s", "q", "e"}
    assert len({one["score"] for one in facts}) > 20
    assert all(one["tag_string_artist"] and one["tag_string_copyright"] for one in facts)
    source = tagged(drawn, tags=TagSettings(categories=("rating", "general"), ratings=("general",), least_score=10))
    count = sum(one["rating"] == "g" and one["score"] >= 10 for one in facts)
    assert len(source.training) == count
    assert sum(source.collections[0].left_out_by_tags.values()) == 200 - count
    assert all(prompt.text.startswith("general, ") for prompt in source.prompts(9, 0, 0))
    assert survey(source, {"words": len})["collections"][0]["left_out_by_tags"]["rated explicit"] > 0


def test_draw_scan_sft_grpo_evaluate(tmp_path):
    with tiny_runs.folder(tmp_path):
        assert command("data", "draw", "--out", "drawn", "--count", "200", "--held-out", "20").code == 0
        report = json.loads(command("data", "scan", str(EXAMPLES / "sft.toml"), "--json", "--sheet", "sheet.png").out)
        assert report["captioned"] == 220
        assert report["buckets"] == {"32x32": 220}
        assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")
        end = command("data", "captions", str(EXAMPLES / "sft.toml"), "--out", "captions.txt", "--draws", "2")
        assert "400 captions of 200 images" in end.out
        sets = [*QUICK, *SMALL]
        end = command("sft", str(EXAMPLES / "sft.toml"), "--name", "sft", sets=[*sets, "train.batch=4"])
        assert (end.code, end.err) == (0, "")
        assert "200 images" in " ".join(end.out.split())
        first = tiny_runs.lines(Path("runs/sft/metrics.jsonl"))[0]
        assert first["sft/denoising"] > 0
        rl = [*sets, "train.prompts=2", "train.group_size=3", "plan.steps=4", "plan.window.high=1", "anchor.batch=2"]
        rl += ["model.start=runs/sft/checkpoints/000002", tiny_runs.REWARD]
        end = command("train", str(EXAMPLES / "grpo.toml"), "--name", "grpo", sets=rl)
        assert (end.code, end.err) == (0, "")
        line = json.loads(command("evaluate", "runs/grpo", "--json").out)
        assert line["prompts"] == 4
        assert {"strict", "soft", "denoising_loss"} <= line.keys()


def test_a_run_on_images_resumes_exactly(tmp_path, drawn):
    with tiny_runs.folder(tmp_path):
        sets = [*QUICK, *SMALL, f"data.train={drawn / 'train'}", f"data.held_out_path={drawn / 'held-out'}"]
        sets += ["train.batch=3", "checkpoint.every=1", "evaluate.every=4"]
        for name in ("whole", "parts"):
            steps = 4 if name == "whole" else 2
            done = command("sft", str(EXAMPLES / "sft.toml"), "--name", name, sets=[*sets, f"train.iterations={steps}"])
            assert done.code == 0, done.err
        again = command("sft", "--name", "parts", "--resume", sets=["train.iterations=4"])
        assert again.code == 0, again.err
        last = [Path(f"runs/{name}/checkpoints/000004/model.safetensors").read_bytes() for name in ("whole", "parts")]
        assert last[0] == last[1]


def test_a_bad_set_ends_before_weights_are_opened(tmp_path):
    with tiny_runs.folder(tmp_path):
        draw_set(Path("drawn"), 20, 4, 0, 32, str)
        Path("drawn/train/000003.json").unlink()
        end = command("sft", str(EXAMPLES / "sft.toml"), "--name", "a", sets=["model.start=nowhere.safetensors"])
        assert end.code == 2
        assert "1 of 20 images have no caption: 000003.png" in end.err
        assert end.err.count("\n") == 1
        assert not Path("runs/a").exists()


def test_data_commands_say_what_they_cannot_do(tmp_path):
    with tiny_runs.folder(tmp_path):
        assert "no such recipe" in command("data", "scan", "nowhere").err
        assert "./nowhere: no such file or folder, and no recipe either" in command("data", "scan", "./nowhere").err
        end = command("data", "scan", "scenes/sft")
        assert 'not of kind "images"' in end.err
        assert (end.code, end.err.count("\n")) == (2, 1)
