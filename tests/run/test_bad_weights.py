"""What may lie where weights should: one line each, exit code 2, and no run folder left behind."""

from pathlib import Path

import pytest
import torch

import tiny_runs
from grpaint.backends.scenes import Scenes
from grpaint.core.errors import CheckpointError
from grpaint.core.runtime import Runtime
from grpaint.storage.files import read_weights, write_weights
from tiny_runs import TINY, command

pytestmark = pytest.mark.usefixtures("small_network")

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>\n"


@pytest.fixture(scope="module")
def whole():
    """Tensors and header of a good file."""
    return Scenes(start="random").load(Runtime()).export("average")


@pytest.fixture(autouse=True)
def _here(tmp_path):
    with tiny_runs.folder(tmp_path, keep=False):
        yield


def _missing(path, whole):
    pass


def _empty(path, whole):
    path.write_bytes(b"")


def _truncated(path, whole):
    write_weights(path, *whole)
    path.write_bytes(path.read_bytes()[:-100])


def _header_cut(path, whole):
    write_weights(path, *whole)
    path.write_bytes(path.read_bytes()[:50])


def _pointer(path, whole):
    path.write_bytes(POINTER)


def _page(path, whole):
    path.write_bytes(PAGE)


def _pickle(path, whole):
    torch.save({"weight": torch.zeros(2)}, path)


def _lacking(path, whole):
    write_weights(path, {name: t for name, t in whole[0].items() if name != "enter.weight"}, whole[1])


def _extra(path, whole):
    write_weights(path, whole[0] | {"enter.more": torch.zeros(2)}, whole[1])


def _reshaped(path, whole):
    write_weights(path, whole[0] | {"enter.weight": torch.zeros(2, 3)}, whole[1])


def _foreign(path, whole):
    write_weights(path, {"unet.weight": torch.zeros(2)})


def _epsilon(path, whole):
    write_weights(path, whole[0], whole[1] | {"parametrisation": "epsilon"})


def _folder(path, whole):
    path.mkdir()


BAD = {
    _missing: ["no weights there", "w.safetensors"],
    _empty: ["w.safetensors", "0 bytes"],
    _truncated: ["not a whole safetensors file", "cut short"],
    _header_cut: ["not a whole safetensors file", "50 bytes"],
    _pointer: ["git-lfs pointer", "git lfs pull"],
    _page: ["HTML page"],
    _pickle: ["w.safetensors", "a torch file, whatever its name"],
    _lacking: ["another architecture", "1 tensors missing", "enter.weight"],
    _extra: ["another architecture", "1 unknown", "enter.more"],
    _reshaped: ["another architecture", "1 of another shape", "enter.weight"],
    _foreign: ["another architecture", "1 unknown"],
    _epsilon: ["parametrisation", '"epsilon"', '"velocity"'],
    _folder: ["no weights there", "model.safetensors"],
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__.strip("_"))
def test_bad_weights_are_one_line(make, whole):
    make(Path("w.safetensors"), whole)
    end = command("train", "flow-grpo-fast", "--name", "new", sets=[*TINY, "model.start=w.safetensors"])
    assert end.code == 2
    assert end.err.startswith("grpaint: w.safetensors")
    assert end.err.count("\n") == 1
    for word in BAD[make]:
        assert word in end.err
    assert not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    "make", [_missing, _truncated, _pointer, _page, _lacking, _folder], ids=lambda make: make.__name__.strip("_")
)
@pytest.mark.parametrize("words", [["evaluate"], ["sample"]], ids=["evaluate", "sample"])
def test_bad_weights_are_one_line_to_evaluate_and_sample_too(make, words, whole):
    make(Path("w.safetensors"), whole)
    end = command(*words, "w.safetensors", *(["a red circle"] if words == ["sample"] else []))
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert "w.safetensors" in end.err


def test_after_bad_weights_the_name_is_free(whole):
    sets = [*TINY, tiny_runs.REWARD, "train.iterations=1", "model.start=w.safetensors"]
    assert command("train", "flow-grpo-fast", "--name", "new", sets=sets).code == 2
    write_weights(Path("w.safetensors"), *whole)
    assert command("train", "flow-grpo-fast", "--name", "new", sets=sets).code == 0


def test_a_checkpoint_folder_and_half_precision_are_good_starts(whole):
    Path("folder").mkdir()
    write_weights(Path("folder/model.safetensors"), {name: t.half() for name, t in whole[0].items()}, whole[1])
    net = Scenes(start="folder").load(Runtime()).net.state_dict()
    for name, tensor in whole[0].items():
        assert net[name].dtype == torch.float32
        assert torch.equal(net[name], tensor.half().float())


def test_a_run_folder_is_distinguished_from_its_checkpoints(whole):
    Path("run/checkpoints/000002").mkdir(parents=True)
    write_weights(Path("run/checkpoints/000002/model.safetensors"), *whole)
    message = r"It is a run: name one of its checkpoints, such as run/checkpoints/000002\."
    with pytest.raises(CheckpointError, match=message):
        Scenes(start="run").load(Runtime())


def test_a_written_file_reads_back(whole):
    write_weights(Path("w.safetensors"), *whole)
    tensors, header = read_weights(Path("w.safetensors"))
    assert header == whole[1] == {"model": "scenes", "parametrisation": "velocity"}
    assert tensors.keys() == whole[0].keys()
    assert all(torch.equal(tensors[name], whole[0][name]) for name in tensors)
