"""Pictures of a run: held-out prompts over time, and its last rollout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_runs
from grpaint.run.folder import RunFolder
from grpaint.run.lines import PICTURES
from grpaint.run.pictures import held_out_file, rollout_file, save_drawing, small_images
from grpaint.storage.reading import parse_object
from tiny_runs import REWARD, TINY, command, lines

pytestmark = pytest.mark.usefixtures("small_network")

SETS = [*TINY, REWARD, "evaluate.pictures=3", "evaluate.pictures_every=1", "train.iterations=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that draws after each iteration and evaluates at 0, 2 and 3."""
    with tiny_runs.folder(tmp_path_factory.mktemp("pictures")) as here:
        assert command("train", "flow-grpo-fast", "--name", "one", sets=SETS).code == 0
    return here / "runs/one"


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def pixels(file):
    return np.asarray(Image.open(file))


def last_rollout(run):
    """The folder and the record of a run's only rollout."""
    (folder,) = (run / "samples/rollout").iterdir()
    return folder, parse_object((folder / "rollout.json").read_text(), "rollout.json")


def test_the_same_prompts_are_drawn_at_evaluations_and_between_them(run):
    drawn = lines(run / PICTURES)
    assert [line["iteration"] for line in drawn] == [0, 1, 2, 3]
    assert all(line["captions"] == drawn[0]["captions"] and len(line["captions"]) == 3 for line in drawn)
    files = [[run / held_out_file(line["iteration"], number) for number in range(3)] for line in drawn]
    assert all(Image.open(file).format == "WEBP" for row in files for file in row)
    assert len({pixels(row[0]).tobytes() for row in files}) > 1  # the weights move


def test_all_held_out_prompts_are_recorded(run):
    captions = parse_object((run / "held-out.json").read_text(), "held-out.json")["captions"]
    assert len(captions) == lines(run / "evaluations.jsonl")[0]["prompts"]
    assert captions[:3] == lines(run / PICTURES)[0]["captions"]


def test_scores_are_those_of_the_evaluation(run):
    drawn = {line["iteration"]: line for line in lines(run / PICTURES)}
    for judged in lines(run / "evaluations.jsonl"):
        scores = drawn[judged["iteration"]]["scores"]
        assert drawn[judged["iteration"]]["score"] == judged["score"]
        for name in ("strict", "soft", "background"):
            assert scores[name] == pytest.approx(judged[f"{name}_by_prompt"][:3], abs=1e-4)


def test_before_and_after_show_the_first_and_the_last_of_them(run):
    sheet = np.asarray(Image.open(run / "samples/before-after.png"))
    for row, iteration in enumerate((0, 3)):
        small = pixels(run / held_out_file(iteration, 0)).astype(int)
        cell = sheet[44 + row * 138 : 44 + row * 138 + 128, 74 : 74 + 128].astype(int)
        step = 128 // len(small)
        assert np.abs(cell[::step, ::step] - small).max() <= 1


def test_the_last_rollout_has_every_group_with_scores_and_advantages(run):
    folder, record = last_rollout(run)
    assert (folder.name, record["iteration"], record["prompts"], len(record["groups"])) == ("000003", 3, 3, 3)
    last = lines(run / "metrics.jsonl")[-1]
    totals = [value for group in record["groups"] for value in group["total"]]
    advantages = [abs(value) for group in record["groups"] for value in group["advantage"]]
    assert np.mean(totals) == pytest.approx(last["reward/bright"], abs=1e-6)
    assert np.mean(advantages) == pytest.approx(last["advantage/abs_mean"], abs=1e-6)
    for number, group in enumerate(record["groups"]):
        brightness = [(pixels(folder / rollout_file(number, member)) / 255).mean() for member in range(4)]
        added = [0.1 * ((4 * number + member) % 4) for member in range(4)]  # by the reward
        assert np.add(brightness, added) == pytest.approx(group["total"], abs=1 / 255)


def test_a_resumed_run_forgets_what_was_drawn_after_its_checkpoint():
    assert command("train", "flow-grpo-fast", "--name", "it", sets=SETS).code == 0
    folder = RunFolder(Path("runs/it"))
    whole = lines(folder.path / PICTURES)
    assert (folder.path / held_out_file(3, 0)).exists()
    folder.cut(2)
    assert lines(folder.path / PICTURES) == whole[:3]
    assert (folder.path / held_out_file(2, 0)).exists()
    assert not (folder.path / held_out_file(3, 0)).exists()
    assert not list((folder.path / "samples/rollout").iterdir())


@pytest.mark.parametrize(
    "change",
    [{"captions": "a"}, {"kinds": []}, {"scores": {"strict": [1.0]}}, {"score": 3}, {"iteration": "1"}],
)
def test_a_damaged_line_is_left_out(change, tmp_path):
    line = {"iteration": 1, "captions": ["a", "b"], "kinds": ["x", "y"], "score": "strict", "scores": {"s": [1.0, 0.0]}}
    (tmp_path / PICTURES).write_text("".join(json.dumps(one) + "\n" for one in (line, line | change)))
    assert RunFolder(tmp_path).lines(PICTURES) == [line]


def test_small_pictures_lose_nothing_and_large_ones_are_reduced(tmp_path):
    noise = torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8)
    save_drawing(tmp_path / "samples", 7, noise)
    assert (pixels(tmp_path / held_out_file(7, 0)) == noise[0].permute(1, 2, 0).numpy()).all()
    save_drawing(tmp_path / "samples", 8, torch.zeros(1, 3, 1024, 768, dtype=torch.uint8))
    assert Image.open(tmp_path / held_out_file(8, 0)).size == (384, 512)
    assert small_images(torch.rand(2, 3, 400, 800)).shape == (2, 3, 96, 192)
    assert small_images(torch.rand(2, 3, 16, 16)).shape == (2, 3, 16, 16)


def test_without_pictures_nothing_is_drawn():
    sets = [*TINY, REWARD, "evaluate.pictures=0", "train.iterations=1"]
    assert command("train", "flow-grpo-fast", "--name", "none", sets=sets).code == 0
    assert not Path("runs/none", PICTURES).exists()
    assert not list(Path("runs/none/samples").iterdir())


def test_of_many_images_whole_groups_are_shown(monkeypatch):
    monkeypatch.setattr("grpaint.run.pictures.ROLLOUT_IMAGES", 9)
    assert command("train", "flow-grpo-fast", "--name", "few", sets=[*SETS, "train.iterations=1"]).code == 0
    folder, record = last_rollout(Path("runs/few"))
    assert (record["prompts"], len(record["groups"]), len(list(folder.glob("*.webp")))) == (3, 2, 8)


LOGGER = """
class Keeper:
    def start(self, folder, settings):
        self.file = folder / "shown.txt"
    def write(self, iteration, line):
        pass
    def images(self, iteration, name, images, captions):
        with self.file.open("a") as file:
            print(iteration, name, tuple(images.shape), images.dtype, captions[0], file=file)
        if iteration:
            raise ValueError("no room")
"""


def test_a_logger_gets_the_pictures_of_evaluations_and_its_error_is_a_line():
    Path("keeper.py").write_text(LOGGER)
    sets = [*SETS, "loggers.mine.kind=keeper.py:Keeper"]
    end = command("train", "flow-grpo-fast", "--name", "it", sets=sets)
    assert end.code == 0
    assert end.out.count("loggers.mine raised ValueError: no room; it gets no more lines") == 1
    caption = lines(Path("runs/it", PICTURES))[0]["captions"][0]
    shown = Path("runs/it/shown.txt").read_text().splitlines()
    assert [line.split(" (3, ")[0] for line in shown] == ["0 held_out/pictures", "2 held_out/pictures"]
    assert all("torch.uint8" in line and f"{caption} (" in line and line.endswith("%)") for line in shown)


def test_tensorboard_has_a_grid_of_pictures():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*SETS, "loggers.board.kind=tensorboard"]).code == 0
    events = EventAccumulator("runs/it/tensorboard", size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("held_out/pictures")] == [0, 2, 3]
    assert events.Images("held_out/pictures")[0].width > 3 * 128
