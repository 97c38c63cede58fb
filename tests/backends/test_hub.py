"""Where models come from: local folders without a socket, a hub's repository, and files that are not what they say."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file

from grpaint.backends.diffusers import Diffusers
from grpaint.backends.hub import is_hub_id, located
from grpaint.backends.runtime import Runtime
from grpaint.core import CheckpointError, ConfigError
from grpaint.rewards.aesthetic import Aesthetic
from tiny_pipelines import save

COMMIT = "0" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd15", tmp_path_factory.mktemp("pipelines"))


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as its client asks for: a repository's list, and its files."""

    root: Path
    lie = False  # say another hash than the file has

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/models/me/tiny/tree/"):
            return self._send(json.dumps([self._entry(file) for file in self._files()]).encode())
        if path.startswith("/api/models/me/tiny"):
            files = [self._about(file) for file in self._files()]
            return self._send(json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": files}).encode())
        file = self.root / path.partition("/resolve/")[2].partition("/")[2]
        if not path.startswith("/me/tiny/") or not file.is_file():
            return self._send(b"", 404)
        return self._send(file.read_bytes())

    def _files(self) -> list[Path]:
        return [file for file in sorted(self.root.rglob("*")) if file.is_file()]

    def _entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": str(file.relative_to(self.root)), "size": file.stat().st_size, "oid": "1"}

    def _about(self, file: Path) -> dict[str, object]:
        raw, name = file.read_bytes(), str(file.relative_to(self.root))
        about: dict[str, object] = {"rfilename": name, "size": len(raw), "blobId": "1"}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(raw + b"x" * self.lie).hexdigest()
            about["lfs"] = {"sha256": digest, "size": len(raw), "pointerSize": 130}
        return about

    def _send(self, body: bytes, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    Hub.root, Hub.lie = folder, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def grpaint(hub: str, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = "from grpaint.cli import main; main()"
    there = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cache,
        env=os.environ | there,
    )


RECIPE = """
[model]
kind = "diffusers"
base = "me/tiny"
[data]
kind = "scenes"
[plan]
steps = 3
sampler = { kind = "ddim" }
[rewards.checker]
kind = "scenes-checker"
[train]
iterations = 1
learning_rate = 1e-3
"""


def test_fetch_lists_and_downloads_and_the_rest_needs_no_network(hub: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    listed = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in listed.stdout
    assert not (tmp_path / "models").exists()
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 0, done.stderr
    fetched = tmp_path / "models/tiny"
    assert done.stdout.splitlines()[-1] == f'--set model.base="{fetched}"'
    assert (fetched / weights.relative_to(folder)).read_bytes() == weights.read_bytes()
    assert Diffusers(str(fetched)).load(Runtime()).name == "sd15"


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

    Hub.root = clip_folder(tmp_path / "root")
    torch.save(head_tensors(16), Hub.root / "aesthetic-model.pth")
    (Hub.root / "unasked.bin").write_bytes(b"0")
    (tmp_path / "mine.toml").write_text(REWARDS)
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 0, done.stderr
    assert "rewards.like.weights: alexnet-owt-7be5be79.pth comes from https://download.pytorch.org" in done.stdout
    weights = Hub.root / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in done.stdout
    fetched = tmp_path / "models/tiny"
    assert done.stdout.splitlines()[-2:] == [f'--set rewards.taste.{key}="{fetched}"' for key in ("weights", "clip")]
    assert (fetched / weights.name).read_bytes() == weights.read_bytes()
    assert (fetched / "aesthetic-model.pth").is_file()
    assert not (fetched / "unasked.bin").exists()
    Aesthetic(weights=str(fetched), clip=str(fetched)).check()
    Hub.lie = True
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "others")
    assert done.returncode == 2
    assert "SHA-256" in done.stderr


def test_a_hub_id_is_read_through_the_cache_and_offline_is_kept(hub: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    cold = grpaint(hub, tmp_path, "--offline", "show", "mine.toml")
    assert cold.returncode == 2
    assert 'model.base = "me/tiny": not on this machine' in cold.stderr
    assert "grpaint fetch RECIPE" in cold.stderr
    assert grpaint(hub, tmp_path, "show", "mine.toml").returncode == 0
    assert not list(tmp_path.rglob("*.safetensors"))  # settings alone
    assert grpaint(hub, tmp_path, "--offline", "show", "mine.toml").returncode == 0


def test_a_file_that_is_not_what_the_hub_says_is_refused(hub: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    Hub.lie = True
    done = grpaint(hub, tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 2
    assert "SHA-256" in done.stderr
    assert "the hub says" in done.stderr


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    done = grpaint("http://127.0.0.1:9", tmp_path, "fetch", "mine.toml", "--to", "models")
    assert done.returncode == 2
    assert done.stderr.startswith("grpaint: ")
    assert "me/tiny" in done.stderr
    assert "refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    assert not any(map(is_hub_id, ("./a/b", "../b", "~/b", "a", "/a/b", "a/b/c")))
    (tmp_path / "a/b").mkdir(parents=True)
    assert not is_hub_id("a/b")
    assert not is_hub_id("a/missing")  # a folder mistyped
    assert located("a/b", weights=True) == Path("a/b")
    with pytest.raises(ConfigError, match="no such folder"):
        located("nowhere", weights=False)


# Files that are wrong.


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "sd15"))


WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a git-lfs pointer of"),
        (b"<!DOCTYPE html><html></html>", "an HTML page of"),
        (b"", "without a header"),
        (b"\x80\x04garbage that is no header", "without a header"),
    ],
)
def test_files_that_are_no_weights(copy: Path, content: bytes, said: str) -> None:
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"diffusion_pytorch_model.safetensors: .*{said}") as refusal:
        Diffusers(str(copy)).load(Runtime())
    assert "\n" not in str(refusal.value)


def test_a_truncated_file_says_what_was_expected(copy: Path) -> None:
    raw = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(raw[:-100])
    with pytest.raises(CheckpointError, match=f"{len(raw) - 100} bytes, its header says {len(raw)}"):
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
