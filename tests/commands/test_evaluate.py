"""``grpaint evaluate`` of several models: what it makes, that parts change nothing, and what it refuses."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import tiny_runs
from grpaint.commands.evaluate import parts
from grpaint.commands.evaluate.candidates import Judging
from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.recipe.config import open_recipe
from grpaint.recipe.settings import Evaluation
from grpaint.storage.files import read_weights, write_weights
from tiny_runs import REWARD, TINY, command

FEW = ("measure.group=2", "measure.group_prompts=3", "measure.draws=20", "measure.image_draws=2")
MEASURES = {
    "free generation": "fid kid diversity recall strict soft background patch_energy reward reward/bright "
    "scenes-scorer scenes-cleanliness image/dark_fraction image/edge_density image/colour_entropy image/saturation "
    "image/grid_energy",
    "reconstruction": "ssim psnr scenes-distance",
    "held-out captioned images": "denoising_loss",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_network):
    """A finished run from the shipped base, and its assessment against what it began from."""
    with tiny_runs.folder(tmp_path_factory.mktemp("assess")) as here:
        sets = [item for item in TINY if not item.startswith("model.")]
        extra = [REWARD, "train.iterations=2", "train.learning_rate=0.003", "evaluate.pictures=0"]
        assert command("train", "flow-grpo-fast", "--name", "one", sets=[*sets, *extra]).code == 0
        end = command("evaluate", "base", "tuned=one", "--few", "--keep", "--json", "--trust", sets=FEW)
        assert end.code == 0, end.err
        assert json.loads(end.out) == json.loads(Path("evaluation/evaluation.json").read_text())
    return here


@pytest.fixture
def result(run):
    return json.loads((run / "evaluation/evaluation.json").read_text())


@pytest.fixture(autouse=True)
def _here(run, monkeypatch):
    monkeypatch.chdir(run)


def entry(result, name):
    (only,) = (item for item in result["measures"] if item["measure"] == name)
    return only


def test_every_measure_has_its_protocol_and_its_card(result):
    protocols = {}
    for item in result["measures"]:
        protocols.setdefault(item["protocol"], set()).add(item["measure"])
        assert {"metric", "images", "resolution", "sampler", "steps", "guidance", "seed"} <= item["card"].keys()
    assert protocols == {protocol: set(names.split()) for protocol, names in MEASURES.items()}
    assert entry(result, "fid")["card"]["features"]["name"] == "scenes-scorer features"
    assert entry(result, "fid")["card"]["few"] is True
    assert entry(result, "ssim")["card"]["strength"] == 0.6
    assert entry(result, "ssim")["card"]["metric"].startswith("torchmetrics ")
    assert entry(result, "scenes-scorer")["stands_for"] == "CLIP-Score"
    assert re.fullmatch("[0-9a-f]{16}", entry(result, "scenes-scorer")["card"]["weights"])
    assert entry(result, "diversity")["card"]["images"] == 6
    assert len({model["weights"] for model in result["sources"].values()}) == 2


def test_values_are_those_of_evaluate_and_differences_are_paired(result):
    line = json.loads(command("evaluate", "alone=one", "--json", "--trust").out)
    first = tiny_runs.lines(Path("runs/one/evaluations.jsonl"))[0]
    for name in ("strict", "soft", "background", "reward/bright", "image/saturation", "denoising_loss"):
        measure = entry(result, name)
        assert measure["values"]["tuned"]["value"] == pytest.approx(line[name], abs=1e-6), name
        assert measure["values"]["base"]["value"] == pytest.approx(first[name], abs=1e-6), name
        assert measure["differences"]["tuned"]["value"] == pytest.approx(line[name] - first[name], abs=1e-6)
    moved = entry(result, "background")["differences"]["tuned"]
    assert moved["value"] != 0
    assert moved["interval"][0] <= moved["value"] <= moved["interval"][1]
    kinds = entry(result, "soft")["by_category"]
    assert sum(kind["values"]["base"]["images"] for kind in kinds.values()) == 6
    assert all("interval" in kind["differences"]["tuned"] for kind in kinds.values())


def test_the_page_is_one_file_and_has_every_picture(result):
    text = Path("evaluation/evaluation.html").read_text()
    sources = re.findall(r'(?:src|href)="([^#"]*)"', text)
    assert len(sources) == 2 * 3 * 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src &#39;none&#39;" in policy
    assert len(re.findall('alt="tuned: [^"]+"', text)) == 2 * 6
    for name in ("fid", "ssim", "reference", "difference from base"):
        assert name in text
    pictures = Path("evaluation/images/tuned/free")
    assert [path.name for path in sorted(pictures.iterdir())] == [f"{n:06d}.png" for n in range(6)]


def test_parts_and_interruptions_change_nothing_and_a_damaged_record_is_refused(result, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "PART", 4)
    words = ("evaluate", "base", "tuned=one", "--few", "--json", "--trust", "--out", str(tmp_path / "again"))
    assert command(*words, sets=FEW).code == 0
    (tmp_path / "again/records/tuned/0001.safetensors").unlink()
    (tmp_path / "again/evaluation.json").unlink()
    end = command(*words, sets=FEW)
    assert end.err.count("\n") == 1  # one part was missing
    for one, other in zip(json.loads(end.out)["measures"], result["measures"], strict=True):
        for name, value in other["values"].items():
            assert one["values"][name]["value"] == pytest.approx(value["value"], rel=1e-3, abs=1e-4), one["measure"]
    for other in ("measure.strength=0.5", "precision=bf16", "model.guidance=2.0"):
        refused = command(*words, sets=[*FEW, other])
        assert refused.code == 2
        assert "0000.safetensors: made with other settings or weights" in refused.err
    end = command(*words, sets=[*FEW, "model.batch=3"])
    assert (end.code, end.err) == (0, "")  # nothing was drawn again
    record = tmp_path / "again/records/tuned/0000.safetensors"
    tensors, header = read_weights(record)
    write_weights(record, tensors | {"features": tensors["features"][:1]}, header)
    refused = command(*words, sets=FEW)
    assert refused.code == 2
    assert "tuned/0000.safetensors: damaged: its XXH3-128 is not that of what was written. Remove it" in refused.err
    shutil.rmtree(tmp_path / "again")


def test_a_table_for_a_person_and_a_model_against_itself(tmp_path):
    words = ("evaluate", "one=one:base", "two=runs/one:base", "--few", "--out", str(tmp_path / "same"))
    end = command(*words, sets=FEW)
    assert end.code == 0
    assert "one and two have the same weights; what an earlier RUN began from is RUN:base." in end.err
    for word in ("Free generation", "Reconstruction from strength 0.6", "scenes-distance for LPIPS", "evaluation.html"):
        assert word in end.out
    report = json.loads((tmp_path / "same/evaluation.json").read_text())
    assert all(item["differences"]["two"]["value"] == 0 for item in report["measures"])
    assert report["hacking"] == {}


REFUSED = {
    ("base", "tuned=one"): (FEW, "evaluate.prompts = 6: a Frechet distance on 192 features needs more images"),
    ("base", "tuned=one", "--few"): ((*FEW, "evaluate.prompts=3"), "evaluate.prompts = 3: recall looks at 3"),
    ("a=one", "a=one:base", "--few"): (FEW, "a: two sources of one name"),
    ("reference=one", "tuned=one", "--few"): (FEW, '"reference" is the name of the true images'),
    ("base", "one", "--few"): ((*FEW, "measure.strength=0.01"), "measure.strength: start.strength 0.01 lies below"),
    ("base", "one", "--few", ""): ((*FEW, "measure.group=1"), "measure.group must be at least 2"),
    ("base", "one", "--few", "", ""): ((*FEW, "evaluate.steps=0"), "evaluate.steps"),
    ("nowhere", "one", "--few"): (FEW, "nowhere: neither a run folder"),
}


@pytest.mark.parametrize("words", REFUSED, ids=str)
def test_impossible_evaluations_are_refused_in_one_line(words, tmp_path):
    sets, message = REFUSED[words]
    end = command("evaluate", "--trust", *filter(None, words), "--out", str(tmp_path / "no"), sets=sets)
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert message in end.err
    assert not (tmp_path / "no").exists()


def test_without_torchmetrics_nothing_is_sampled(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    end = command("evaluate", "base", "one", "--few", "--out", str(tmp_path / "no"), sets=FEW)
    assert end.code == 2
    assert "pip install 'grpaint[metrics]'" in end.err
    assert not (tmp_path / "no").exists()


def test_a_base_alone_is_judged(tmp_path):
    end = command("evaluate", "one:base", "--few", "--json", "--trust", sets=FEW)
    assert end.code == 0, end.err
    assert list(json.loads(end.out)["sources"]) == ["base"]


@pytest.mark.parametrize(
    ("count", "side", "message"),
    [
        (20, 32, "20 held-out images, 256 asked for: a Frechet distance on 192 features .* hold out more, or --few"),
        (2, 32, "2 held-out images, 256 asked for: recall looks at 3 neighbours"),
        (200, 16, "the held-out images have 16 x 16 pixels, and the model draws 32 x 32"),
    ],
)
def test_references_that_are_too_few_or_of_another_size_are_refused(count, side, message):
    judging = Judging.of(open_recipe("flow-grpo-fast", "train", [])[0])
    judging = dataclasses.replace(judging, recipe=dataclasses.replace(judging.recipe, evaluate=Evaluation(prompts=256)))
    images = torch.zeros(count, 3, side, side)
    with pytest.raises(ConfigError, match=message):
        judging.check_references(CaptionedImages([Prompt("")] * count, images.__getitem__), few=False)


DATA = """
from dataclasses import dataclass
from grpaint.scenes.world import SceneData

@dataclass(frozen=True)
class Plain(SceneData):
    "Scenes whose checker nobody knows."
    score = "reward"

    def measures(self, images, prompts):
        return {}
"""


def test_prompts_alone_are_judged_by_what_needs_no_reference(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("train.txt").write_text("a red circle\na blue square\ntwo green circles\n")
        Path("held.txt").write_text("a blue circle\na green square\na red square\ntwo red circles\n")
        sets = [*TINY, REWARD, "data={kind='prompts',train='train.txt',held_out_path='held.txt'}", "anchor=none"]
        sets += ["measure.features={kind='scenes'}", "train.iterations=2"]
        end = command("train", "flow-grpo-fast", "--name", "it", sets=sets)
        assert (end.code, "denoising" in end.out) == (0, False), end.err
        one = command("evaluate", "it", "--trust")
        assert (one.code, "Held-out prompts (4), 2-step ode" in one.out) == (0, True), one.err
        end = command("evaluate", "base", "tuned=it", "--json", "--keep", "--trust", sets=FEW)
        assert end.code == 0, end.err
        report = json.loads(end.out)
        assert report["protocols"] == ["free generation"]
        names = [entry["measure"] for entry in report["measures"]]
        assert names[:1] == ["diversity"]
        assert {"reward", "reward/bright", "image/dark_fraction"} <= set(names)
        assert not {"fid", "kid", "recall", "ssim", "denoising_loss"} & set(names)
        assert all("tuned" in entry["differences"] for entry in report["measures"])
        page = Path("evaluation/evaluation.html").read_text()
        assert "reconstruction" not in page.lower()
        assert sorted(path.name for path in Path("evaluation/images/tuned").iterdir()) == ["free"]
        end = command("evaluate", "base", "it", "--out", "no", sets=[*FEW, "measure.rewards.far.kind=scenes-distance"])
        assert (end.code, "measure.rewards.far looks at a reference image" in end.err) == (2, True), end.err


def test_data_without_measures_are_judged_by_the_reward(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        Path("plain.py").write_text(DATA)
        sets = [*TINY, REWARD, "data.kind=plain.py:Plain", "evaluate.guided=[2]", "train.iterations=2"]
        end = command("train", "flow-grpo-fast", "--name", "it", sets=sets)
        assert end.code == 0, end.err
        assert "reward [95%]" in end.out
        first, last = tiny_runs.lines(Path("runs/it/evaluations.jsonl"))
        assert first["score"] == "reward"
        assert "strict" not in first
        assert first["reward"] == first["reward/bright"]
        assert len(first["reward_by_prompt"]) == 6
        assert first["base_guided"]["reward"] is not None
        state = json.loads(Path("runs/it/checkpoints/000002/state.json").read_text())
        assert state["best"][0] == max(first["reward"], last["reward"])
        assert "reward" in command("evaluate", "it", "--trust").out
