"""Some kills of ``scripts/chaos``, and that it sees what is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.trials import Trial, _run_differences, summary

CHAOS = Path(__file__).parent / "chaos"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of some kills: of a run, of a supervised one, and of a comparison."""
    out = tmp_path_factory.mktemp("chaos")
    words = ["--kills", "4", "--seed", "1", "--only", "scenes-mix-grpo,compare", "--workers", "1", "--out", str(out)]
    end = subprocess.run([sys.executable, str(CHAOS), *words], capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stdout + end.stderr
    assert "seed 1" in end.stdout
    return out


def test_kills_lose_nothing(out):
    trials = [json.loads(line) for line in (out / "kills-1.jsonl").read_text().splitlines()]
    assert sum(len(trial["kills"]) for trial in trials) >= 4
    assert not [trial["faults"] for trial in trials if trial["faults"]]


def test_it_goes_on_from_its_record(out):
    before = (out / "kills-1.jsonl").read_text()
    words = ["--kills", "4", "--seed", "1", "--only", "scenes-mix-grpo", "--workers", "1", "--out", str(out)]
    assert subprocess.run([sys.executable, str(CHAOS), *words], capture_output=True, check=False).returncode == 0
    assert (out / "kills-1.jsonl").read_text() == before


def _spoil_line(run):
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("0.", "1.", 1))


def _spoil_weights(run):
    file = next(run.glob("checkpoints/000006/training.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_spoil_line, "metrics.jsonl differs"),
        (_spoil_weights, "000006/training.safetensors differs"),
        (lambda run: (run / ".part").touch(), "files differ: ['.part']"),
        (lambda run: (run / "run.json").write_text('{"status": "running"}'), "run.json does not say finished"),
    ],
)
def test_it_sees_what_is_lost(spoil, fault, out, tmp_path):
    straight = out / "scenes-mix-grpo/straight/runs/it"
    shutil.copytree(straight, tmp_path / "it")
    assert _run_differences(straight, tmp_path / "it") == []
    spoil(tmp_path / "it")
    assert _run_differences(straight, tmp_path / "it") == [fault]


def test_the_table_counts_kills_and_faults():
    text = summary(
        [Trial("a", 0, ["SIGKILL at the start", "SIGINT after a line (ended before)"]), Trial("a", 1, [], ["x"])]
    )
    assert [line.split() for line in text.splitlines()[1:3]] == [["a", "2", "2", "1", "1"], ["all", "2", "2", "1", "1"]]
