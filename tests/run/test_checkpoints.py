"""A checkpoint says when a byte of it is another; a run goes on from the last whole one, and says why."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from xxhash import xxh3_128

import tiny_runs
from grpaint.core.errors import CheckpointError
from grpaint.recipe.config import read_toml
from grpaint.run.folder import RunFolder, find_checkpoint
from grpaint.run.state import check_checkpoint, sealed
from grpaint.storage.files import numbered
from tiny_runs import REWARD, TINY, command, lines, status

IT = Path("runs/it")
SETS = [*TINY, REWARD, "checkpoint.every=1", "checkpoint.keep=9", "evaluate.pictures=0"]
FILES = ("training.safetensors", "model.safetensors", "state.json")


@pytest.fixture(scope="module")
def straight(small_network, tmp_path_factory):
    """A finished run with checkpoints 1 to 4."""
    with tiny_runs.folder(tmp_path_factory.mktemp("straight")) as here:
        assert command("train", "flow-grpo-fast", "--name", "it", sets=SETS).code == 0
    return here / IT


@pytest.fixture(autouse=True)
def it(tmp_path, straight):
    """A copy of it as a kill leaves it."""
    with tiny_runs.folder(tmp_path, keep=False):
        shutil.copytree(straight, IT)
        (IT / "run.json").write_text(json.dumps(status(IT) | {"status": "running", "end": None}))
        yield IT


def _flip(file, position):
    raw = bytearray(file.read_bytes())
    raw[position % len(raw)] ^= 4
    file.write_bytes(raw)


def _resumed(caplog, *sets):
    """Resume the run, which must end; return what it said."""
    caplog.clear()
    end = command("train", "--name", "it", "--resume", sets=sets)
    assert end.code == 0, end.err
    return " ".join(caplog.messages)


def test_state_json_has_a_digest_of_every_file_of_the_settings_and_of_itself(straight):
    checkpoint = straight / "checkpoints/000004"
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["files"] == {
        name: {
            "bytes": (checkpoint / name).stat().st_size,
            "xxh3_128": xxh3_128((checkpoint / name).read_bytes()).hexdigest(),
        }
        for name in FILES[:2]
    }
    assert state["settings"] == read_toml(straight / "run.toml")
    assert re.fullmatch(r"[0-9a-f]{64}", state["sha256"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [3, 70, 1000, -40, -2])
def test_a_turned_bit_anywhere_takes_the_checkpoint_before(name, position, straight, caplog):
    _flip(IT / "checkpoints/000004" / name, position)
    text = _resumed(caplog)
    assert f"checkpoints/000004/{name}" in text
    assert "Checkpoint 000003 is taken in its place" in text
    tiny_runs.same(straight, IT)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "longer", "zeros", "a folder"])
def test_a_file_that_is_not_whole_takes_the_checkpoint_before(name, damage, straight, caplog):
    file = IT / "checkpoints/000004" / name
    raw = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        changed = {"empty": b"", "cut short": raw[:-9], "longer": raw + b"\n", "zeros": bytes(len(raw))}[damage]
        file.write_bytes(changed)
    text = _resumed(caplog)
    assert f"checkpoints/000004/{name}" in text
    assert "Checkpoint 000003 is taken" in text
    tiny_runs.same(straight, IT)


@pytest.mark.parametrize(
    "content",
    ["null", "4", "[]", "{}", '{"iteration": 4}', "[" * 100_000, '{"iteration": ' + "9" * 5000 + "}", "\x00\x1b[31m"],
)
def test_a_state_of_other_contents_takes_the_checkpoint_before(content, caplog):
    (IT / "checkpoints/000004/state.json").write_text(content)
    text = _resumed(caplog)
    assert "checkpoints/000004/state.json" in text
    assert text.isprintable()


def test_a_state_without_its_own_digest_is_no_early_one(caplog):
    file = IT / "checkpoints/000004/state.json"
    file.write_text(file.read_text().replace('"sha256": "', '"sha257": "'))
    assert "its SHA-256 is missing" in _resumed(caplog)


def _seal(changes, left_out=("sha256",)):
    """Give the last checkpoint another state, whose own digest is right."""
    file = IT / "checkpoints/000004/state.json"
    state = json.loads(file.read_text()) | changes
    file.write_bytes(sealed({key: value for key, value in state.items() if key not in left_out}))


@pytest.mark.parametrize("files", [[], 3, {"model.safetensors": None}, {"model.safetensors": {"bytes": 1}}])
def test_a_sealed_state_of_another_form_takes_the_checkpoint_before(files, caplog):
    _seal({"files": files})
    assert "files is not a size and a digest of each" in _resumed(caplog)


def test_a_count_of_steps_that_is_no_number_takes_the_checkpoint_before(caplog):
    _seal({"steps": "four"})
    assert "steps is no whole number" in _resumed(caplog)


def test_the_average_of_a_run_without_a_count_of_steps_goes_on_without_warm_up():
    _seal({}, left_out=("sha256", "steps"))
    assert command("train", "--name", "it", "--resume", sets=["train.iterations=5"]).code == 0
    sets = [load_file(IT / f"checkpoints/{n:06d}/training.safetensors") for n in (4, 5)]
    keep = read_toml(IT / "run.toml")["train"]["ema"]
    for name in (name for name in sets[0] if name.startswith("average/")):
        current = sets[1][name.replace("average/", "current/")]
        torch.testing.assert_close(sets[1][name], keep * sets[0][name] + (1 - keep) * current)


def test_the_checkpoint_of_another_iteration_is_not_taken(caplog):
    shutil.copytree(IT / "checkpoints/000002", IT / "checkpoints/000009")
    text = _resumed(caplog, "train.iterations=5")
    assert "000009/state.json: of iteration 2, another checkpoint's." in text
    assert [line["iteration"] for line in lines(IT / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_each_damaged_checkpoint_is_named(straight, caplog):
    for name in ("000003", "000004"):
        _flip(IT / f"checkpoints/{name}/training.safetensors", 5000)
    _resumed(caplog)
    assert [message.split(":")[1].split("/")[-2] for message in caplog.messages] == ["000004", "000003"]
    assert all("Checkpoint 000002 is taken in its place" in message for message in caplog.messages)
    tiny_runs.same(straight, IT)


def test_without_a_whole_checkpoint_nothing_is_removed_and_the_code_is_2():
    for folder in numbered(IT / "checkpoints"):
        _flip(folder / "model.safetensors", 5000)
    before = {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()}
    end = command("train", "--name", "it", "--resume", sets=["train.iterations=6"])
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert end.err.startswith("grpaint: runs/it: none of its checkpoints is whole: ")
    assert {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()} == before


def test_foreign_entries_are_no_checkpoints(straight, caplog):
    for name in ("9-keep", "000004.bak", "best", "12", "0000007", "\u0665\u0665\u0665\u0665\u0665\u0665"):
        shutil.copytree(IT / "checkpoints/000001", IT / "checkpoints" / name)
    (IT / "checkpoints/000008").write_text("a file")
    (IT / "checkpoints/note.txt").write_text("mine")
    assert _resumed(caplog) == ""
    assert (IT / "checkpoints/9-keep/state.json").is_file()
    assert (IT / "checkpoints/note.txt").read_text() == "mine"


def test_an_empty_folder_is_passed_over_and_taken_when_the_run_comes_to_it(caplog):
    (IT / "checkpoints/000005").mkdir()
    text = _resumed(caplog, "train.iterations=5")
    assert "000005/state.json: cannot be read: No such file or directory." in text
    assert check_checkpoint(IT / "checkpoints/000005")["iteration"] == 5


def test_checkpoints_are_in_the_order_of_their_numbers():
    for name in ("999999", "1000000"):
        shutil.copytree(IT / "checkpoints/000004", IT / "checkpoints" / name)
    assert [path.name for path in numbered(IT / "checkpoints")][-2:] == ["999999", "1000000"]
    RunFolder(IT).thin(1_000_000, 1, None)
    assert [path.name for path in numbered(IT / "checkpoints")] == ["1000000"]


def test_a_kill_before_thinning_leaves_no_checkpoint_too_many(straight):
    shutil.rmtree(IT)
    sets = [item for item in SETS if not item.startswith("checkpoint.keep")]
    assert command("train", "flow-grpo-fast", "--name", "it", sets=[*sets, "checkpoint.keep=2"]).code == 0
    names = {path.name for path in numbered(IT / "checkpoints")}
    shutil.copytree(straight / "checkpoints/000001", IT / "checkpoints/000001")
    (IT / "checkpoints/.000004.part").mkdir()
    (IT / "checkpoints/.000004.lock").touch()
    (IT / ".run.json.0123456789abcdef.part").touch()
    (IT / "run.json").write_text(json.dumps(status(IT) | {"status": "running"}))
    assert command("train", "--name", "it", "--resume").code == 0
    assert {path.name for path in (IT / "checkpoints").iterdir()} == names
    assert not list(IT.glob(".*"))


def test_thinning_does_not_take_a_damaged_later_one_for_the_newest(caplog):
    (IT / "checkpoints/000009").mkdir()
    folder = RunFolder(IT)
    folder.thin(4, 1, None)
    assert [path.name for path in numbered(IT / "checkpoints")] == ["000004", "000009"]
    assert folder.latest() == IT / "checkpoints/000004"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\nseed = 0", "\nseed = 7", "train.seed = 7: run.toml was changed by hand, and the checkpoint that runs/it"),
        ("group_size = 4", "group_size = 6", "train.group_size = 6: run.toml was changed by hand"),
        ("iterations = 4", "iterations = 3", "train.iterations = 3: run.toml was changed by hand"),
    ],
)
def test_settings_changed_by_hand_are_refused_by_key(old, new, words):
    settings = (IT / "run.toml").read_text()
    assert old in settings
    (IT / "run.toml").write_text(settings.replace(old, new, 1))
    before = {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()}
    end = command("train", "--name", "it", "--resume")
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert end.err.startswith(f"grpaint: {words}")
    assert {path: path.read_bytes() for path in IT.rglob("*") if path.is_file()} == before


def test_more_iterations_by_hand_are_as_good_as_by_a_flag(caplog):
    settings = (IT / "run.toml").read_text()
    (IT / "run.toml").write_text(settings.replace("iterations = 4", "iterations = 5", 1))
    assert _resumed(caplog) == ""
    assert status(IT)["iterations"] == 5


@pytest.mark.parametrize("damage", [None, b"", b"\x00" * 300, b"[train\n", b"\xff", b"a = " + b"[" * 5000])
def test_a_damaged_run_toml_is_restored_from_the_checkpoint(damage, straight, caplog):
    (IT / "run.toml").unlink()
    if damage is not None:
        (IT / "run.toml").write_bytes(damage)
    text = _resumed(caplog)
    assert "run.toml" in text
    assert "It is restored from the last checkpoint." in text
    assert (IT / "run.toml").read_bytes() == (straight / "run.toml").read_bytes()
    tiny_runs.same(straight, IT)
    assert (damage is None) or (IT / "run.toml.damaged").read_bytes() == damage


@pytest.mark.parametrize("words", [("sample", "it", "a red circle"), ("evaluate", "it")])
def test_drawing_takes_the_checkpoint_before_too(words, caplog):
    (IT / "checkpoints/000004/training.safetensors").unlink()
    end = command(*words)
    assert end.code == 0, end.err
    (message,) = caplog.messages
    assert "000004/training.safetensors: cannot be read" in message
    assert "Checkpoint 000003 is taken" in message
    assert find_checkpoint("it") == IT / "checkpoints/000003/model.safetensors"


def test_weights_with_a_turned_bit_are_not_drawn_with():
    _flip(IT / "checkpoints/000004/model.safetensors", 5000)
    end = command("sample", "it", "a red circle")
    assert end.code == 2
    file = "runs/it/checkpoints/000004/model.safetensors"
    assert end.err == f"grpaint: {file}: damaged: its XXH3-128 is not that of what was written.\n"
    shutil.copytree(IT / "checkpoints/000003", "elsewhere")  # a copy under another name is as good
    assert command("sample", "elsewhere", "a red circle").code == 0


def test_no_whole_checkpoint_to_draw_with_is_one_line():
    for folder in numbered(IT / "checkpoints"):
        (folder / "state.json").write_text("{")
    end = command("sample", "it", "a red circle")
    assert (end.code, end.err.count("\n")) == (2, 1)
    with pytest.raises(CheckpointError, match="none of its checkpoints is whole"):
        find_checkpoint("it")


def test_the_file_that_a_full_disk_refused_is_named(monkeypatch):
    class Full:
        """A file on a disk without space."""

        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def tell(self):
            return 0

        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open

    def open_full(self, mode="r", **more):
        stream = opened(self, mode, **more)
        return Full(stream) if mode == "a+b" else stream

    monkeypatch.setattr(Path, "open", open_full)
    end = command("train", "--name", "it", "--resume", sets=["train.iterations=5"])
    assert end.code == 1
    assert end.err.startswith("grpaint: runs/it/metrics.jsonl: could not be written (No space left on device).")


def test_weights_beside_a_damaged_state_are_drawn_with_and_a_line_says_they_were_not_checked():
    (IT / "checkpoints/000004/state.json").write_text("{")
    end = command("sample", str(IT / "checkpoints/000004/model.safetensors"), "a red circle")
    assert end.code == 0
    assert "000004/state.json:1: not JSON" in end.err
    assert "model.safetensors was not checked" in end.err
