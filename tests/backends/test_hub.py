"""Where models come from: local folders without a socket, a hub's repository, and files that are not what they say."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpaint.backends.diffusers import Diffusers
from grpaint.backends.pipeline_files import is_hub_id, pipeline_folder
from grpaint.core import CheckpointError, ConfigError
from grpaint.core.runtime import Runtime
from grpaint.rewards.aesthetic import Aesthetic
from hub_server import FIRST, SECOND, Hub, grpaint, serving, shell
from original_layout import original
from tiny_pipelines import save
from tiny_runs import write_recipe
from tiny_unets import sd15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd15", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    with serving(folder) as address:
        yield address


def test_fetch_lists_and_downloads_and_the_rest_needs_no_network(hub: str, folder: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, "me/tiny")
    with shell(hub, tmp_path) as run:
        listed = run("fetch", "mine.toml", "--to", "models", "--dry-run")
        assert listed.returncode == 0, listed.stderr
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        assert hashlib.sha256(weights.read_bytes()).hexdigest() in listed.stdout
        assert not (tmp_path / "models").exists()
        done = run("fetch", "mine.toml", "--to", "models")
    assert done.returncode == 0, done.stderr
    fetched = tmp_path / "models/tiny"
    assert done.stdout.splitlines()[-1] == f'--set model.base="{fetched}"'
    assert (fetched / weights.relative_to(folder)).read_bytes() == weights.read_bytes()
    assert Diffusers(str(fetched)).load(Runtime()).name == "sd15"


@pytest.mark.parametrize("kind", ["fp16", "bin"])
def test_a_repository_without_weights_that_are_read_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    other = shutil.copytree(folder, tmp_path / kind)
    (file,) = (other / "unet").glob("*.safetensors")
    if kind == "fp16":
        there = file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    else:
        there = file.with_suffix(".bin")
        torch.save(load_file(file), there)
        file.unlink()
    write_recipe(tmp_path, "me/tiny")
    with serving(other) as address:
        done = grpaint(address, tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 2
    assert f"no weights that are read in unet/. There are {there.name}; .safetensors without a variant" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "models").exists()
    if kind == "fp16":
        with pytest.raises(
            CheckpointError, match=rf"unet: no weights there that are read. There are {there.name}.*fp16"
        ):
            Diffusers(str(other)).load(Runtime())


REWARDS = """
[rewards.taste]
kind = "aesthetic"
weights = "me/tiny"
clip = "me/tiny"
[rewards.like]
kind = "lpips"
[rewards.small]
kind = "jpeg"
"""


def test_rewards_weights_are_fetched_too(hub: str, tmp_path: Path) -> None:
    from tiny_scorers import clip_folder, head_tensors

    root = clip_folder(tmp_path / "root")
    torch.save(head_tensors(16), root / "aesthetic-model.pth")
    (root / "unasked.bin").write_bytes(b"0")
    Hub.commits = {FIRST: root}
    (tmp_path / "mine.toml").write_text(REWARDS)
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 0, done.stderr
    assert "rewards.like.weights: alexnet-owt-7be5be79.pth comes from https://download.pytorch.org" in done.stdout
    weights = root / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in done.stdout
    fetched = tmp_path / "models/tiny"
    assert done.stdout.splitlines()[-2:] == [f'--set rewards.taste.{key}="{fetched}"' for key in ("weights", "clip")]
    assert (fetched / weights.name).read_bytes() == weights.read_bytes()
    assert (fetched / "aesthetic-model.pth").is_file()
    assert not (fetched / "unasked.bin").exists()
    Aesthetic(weights=str(fetched), clip=str(fetched)).check()


def test_a_hub_id_loads_from_the_cache_which_offline_needs(hub: str, tmp_path: Path) -> None:
    write_recipe(tmp_path, "me/tiny")
    cold = grpaint(hub, tmp_path, "--offline", "show", "mine.toml")
    assert cold.returncode == 2
    assert 'model.base = "me/tiny": not on this machine' in cold.stderr
    assert "grpaint fetch RECIPE" in cold.stderr
    assert grpaint(hub, tmp_path, "show", "mine.toml").returncode == 0
    assert not list(tmp_path.rglob("*.safetensors"))  # settings alone
    assert grpaint(hub, tmp_path, "--offline", "show", "mine.toml").returncode == 0


def test_a_run_keeps_the_commit_that_it_began_with(hub: str, folder: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, "me/tiny")
    with shell(hub, tmp_path) as run:
        done = run("train", "mine.toml")
        assert done.returncode == 0, done.stderr
        Hub.commits, Hub.head = Hub.commits | {SECOND: folder}, SECOND
        resumed = run("train", "mine.toml", "--resume", "--set", "train.iterations=2")
        assert resumed.returncode == 0, resumed.stderr
        assert f'base = "me/tiny@{FIRST}"' in (tmp_path / "runs/mine/run.toml").read_text()
        sampled = run("sample", "mine", "a red circle")
        assert sampled.returncode == 0, sampled.stderr
        assert [place.name for place in tmp_path.glob("hub/models--me--tiny/snapshots/*")] == [FIRST]
        shown = run("show", "mine.toml")
    assert f"snapshots/{SECOND}" in shown.stdout  # a new run takes the new one


def test_of_a_single_file_only_what_it_lacks_is_fetched(hub: str, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    save_file({name: t for name, t in original(sd15()).items() if not name.startswith("first_stage_model.")}, file)
    write_recipe(tmp_path, str(file))
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models", "--set", "model.config=me/tiny")
    assert done.returncode == 0, done.stderr
    there = tmp_path / "models/tiny"
    assert done.stdout.splitlines()[-1] == f'--set model.config="{there}"'
    fetched = {str(place.relative_to(there)) for place in there.rglob("*.safetensors")}
    assert fetched == {"vae/diffusion_pytorch_model.safetensors"}
    assert Diffusers(str(file), config=str(there)).load(Runtime()).name == "sd15"


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: str, tmp_path: Path) -> None:
    write_recipe(tmp_path, "me/tiny")
    Hub.lie = True
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 2
    assert "SHA-256" in done.stderr
    assert "the hub lists" in done.stderr


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    write_recipe(tmp_path, "me/tiny")
    done = grpaint("http://127.0.0.1:9", tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 2
    assert done.stderr.startswith("grpaint: ")
    assert "me/tiny" in done.stderr
    assert "refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_hub_ids_are_distinguished_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    assert is_hub_id("owner/name@refs/pr/1")
    assert not is_hub_id("owner/name.safetensors")
    assert not any(map(is_hub_id, ("./a/b", "../b", "~/b", "a", "/a/b", "a/b/c")))
    (tmp_path / "a/b").mkdir(parents=True)
    assert not is_hub_id("a/b")
    assert not is_hub_id("a/missing")  # a folder mistyped
    assert pipeline_folder("a/b", weights=True) == Path("a/b")
    with pytest.raises(ConfigError, match="no such folder"):
        pipeline_folder("nowhere", weights=False)


# Files that are wrong.


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "sd15"))


WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a git-lfs pointer of"),
        (b"<!DOCTYPE html><html></html>", "an HTML page of"),
        (b"", "without a header"),
        (b"\x80\x04garbage that is no header", "without a header"),
    ],
)
def test_foreign_weight_files_are_refused(copy: Path, content: bytes, message: str) -> None:
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"diffusion_pytorch_model.safetensors: .*{message}") as refusal:
        Diffusers(str(copy)).load(Runtime())
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_says_what_was_expected(copy: Path) -> None:
    raw = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(raw[:-100])
    with pytest.raises(CheckpointError, match=f"{len(raw) - 100} bytes, by its header it has {len(raw)}"):
        Diffusers(str(copy)).load(Runtime())


def test_a_missing_shard_is_named(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    index = {"weight_map": dict.fromkeys(tensors, "diffusion_pytorch_model-00002-of-00002.safetensors")}
    (copy / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"unet/.*-00002-of-00002\.safetensors: not found, and .*lists it"):
        Diffusers(str(copy)).load(Runtime())


def test_a_part_without_weights_is_named(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"sd15/unet: no weights there"):
        Diffusers(str(copy)).load(Runtime())


def test_bin_files_are_opened_as_weights_only(copy: Path, tmp_path: Path) -> None:
    file = copy / "unet/diffusion_pytorch_model.bin"
    torch.save(load_file(copy / WEIGHTS), file)
    (copy / WEIGHTS).unlink()
    assert Diffusers(str(copy)).load(Runtime()).name == "sd15"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    with file.open("wb") as opened:
        pickle.dump({"conv_in.weight": Evil()}, opened)
    with pytest.raises(CheckpointError, match="diffusers cannot open it"):
        Diffusers(str(copy)).load(Runtime())
    assert not (tmp_path / "ran").exists()
