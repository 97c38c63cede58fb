"""An exported run goes onto a hub, here one on loopback that takes what huggingface_hub sends, with an honest page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from grpaint.commands.export.formats import ADAPTER
from grpaint.commands.export.push import card
from hub_server import TOKEN, Hub, serving
from tiny_pipelines import save
from tiny_runs import Ended, command, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    base = save("sd15", root)
    (base / "README.md").write_text("---\nlicense: openrail\n---\n")
    return trained(root, str(base))


@pytest.fixture
def hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The hub that huggingface_hub speaks to in this process, by its plain LFS uploads."""
    monkeypatch.chdir(run)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(run / "sd15") as address:
        for name, value in {"ENDPOINT": address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        yield address


def push(out: str, repository: str = "me/tuned") -> Ended:
    return command("export", "mine", "--out", out, "--push", repository)


def test_the_folder_arrives_with_its_page(hub: str, run: Path) -> None:
    done = push("out")
    assert done.code == 0, done.err
    _, notice, *files, address = done.out.splitlines()
    assert notice.startswith("to me/tuned as me, private if it is new")
    assert [line.split()[-1] for line in files] == ["README.md", ADAPTER]
    assert address.startswith(f"{hub}/me/tuned/commit/")
    there = Hub.uploaded["me/tuned"]
    assert there == {file.name: file.read_bytes() for file in (run / "out").iterdir()}
    card = there["README.md"].decode()
    for line in (
        "license: openrail",
        "- Base: a local copy, sd15 (family sd15, SHA-256 `",
        'pipe.load_lora_weights("me/tuned")',
        "| | before | after 1 iterations |",
        "learning_rate = 0.01",
    ):
        assert line in card
    assert str(run) not in card.replace(str(run / "bright.py"), "")


def test_impossible_uploads_are_refused_before_a_model_opens(
    hub: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpaint.commands.export.command.find_model", None)
    assert "write it as OWNER/NAME" in push("no", "tuned").err
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "the hub does not know this login" in push("no").err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run / "none"))
    assert "nobody is logged in. Run `hf auth login`" in push("no").err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused = push("no")
    assert "the network is forbidden by --offline" in refused.err
    assert refused.code == 2
    assert not (run / "no").exists()
    assert not Hub.uploaded


def test_an_upload_that_fails_keeps_the_export(hub: str, run: Path) -> None:
    Hub.full = True
    done = push("kept")
    assert done.code == 1
    assert "the hub refuses" in done.err
    assert "hf upload me/tuned kept" in done.err
    assert done.err.count("\n") == 1
    assert (run / "kept" / ADAPTER).is_file()


@pytest.mark.parametrize(
    "license_", ["openrail++", "other: see LICENSE # not free", "'quoted' \"twice\"", "- yes", None]
)
def test_the_page_escapes_every_text(license_: str | None) -> None:
    about = {
        "base": "stabilityai/sdxl@0123",
        "base_sha256": "ab",
        "family": "sdxl",
        "license": license_,
        "recipe": {"data": {"kind": "/home/me/mine.py:Mine"}, "model": {"base": "stabilityai/sdxl"}},
    }
    evaluated = {
        "iteration": 0,
        "prompts": 8,
        "steps": 4,
        "guidance": 1.0,
        "reward/a: b # c": 0.25,
        "reward/a: b # c_interval": [0.1, 0.4],
    }
    later = {**evaluated, "iteration": 3, "reward/a: b # c": 0.5}
    for evaluations in ([], [evaluated, later]):
        text = card("me/tuned", "diffusers", about, evaluations)
        data = ModelCard(text).data
        assert (data.license, data.base_model) == (license_, "stabilityai/sdxl")
        assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
        assert data.tags == ["text-to-image", "grpaint"]
        results = data.eval_results or []
        assert [(result.metric_type, result.metric_value) for result in results] == [
            ("reward/a: b # c", line["reward/a: b # c"]) for line in evaluations[1:]
        ]
        assert data.model_name == ("tuned" if results else None)
        assert "/home/me" not in text.partition("# tuned")[0]
