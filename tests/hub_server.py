"""A hub on loopback, as much of one as its client asks for: repositories with commits, downloads, and uploads."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FIRST, SECOND = "0" * 40, "1" * 40
TOKEN = "hf_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """The repository me/tiny at each commit's folder, and what is uploaded to others."""

    commits: dict[str, Path]
    head: str
    lie: bool  # say another hash than the file has
    full: bool  # refuse large files
    blobs: dict[str, bytes]  # by SHA-256
    uploaded: dict[str, dict[str, bytes]]  # by repository, by path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self._json({"type": "user", "name": "me", "orgs": []}) if known else self._json({}, 401)
        if path.startswith("/api/models/me/tiny/tree/"):
            return self._json([self._entry(file) for file in self._files(path.split("/")[6])])
        if path.startswith("/api/models/me/tiny"):
            commit = self._commit(path.split("/")[-1])
            files = [self._about(file) for file in self._files(commit)]
            return self._json({"id": "me/tiny", "sha": commit, "siblings": files})
        revision, _, name = path.partition("/resolve/")[2].partition("/")
        file = self.commits[self._commit(revision)] / name
        if not path.startswith("/me/tiny/") or not file.is_file():
            return self._send(b"", 404)
        return self._send(file.read_bytes(), commit=self._commit(revision))

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({}, 401)
        if path == "/api/repos/create":
            name = "me/" + json.loads(body)["name"]
            self.uploaded.setdefault(name, {})
            return self._json({"url": f"{self._self()}/{name}", "id": name, "name": name})
        if "/preupload/" in path:
            return self._json({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [self._action(each) for each in json.loads(body)["objects"]]
            return self._json({"transfer": "basic", "objects": objects})
        repository = "/".join(path.split("/")[3:5])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.uploaded[repository][entry["value"]["path"]] = content
            if entry["key"] == "lfsFile":
                self.uploaded[repository][entry["value"]["path"]] = self.blobs[entry["value"]["oid"]]
        return self._json({"commitUrl": f"{self._self()}/{repository}/commit/{SECOND}", "commitOid": SECOND})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.full:
            return self._send(b"no room", 507)
        self.blobs[hashlib.sha256(body).hexdigest()] = body
        return self._send(b"")

    def _self(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[str-bytes-safe, misc]

    def _commit(self, revision: str) -> str:
        return revision if revision in self.commits else self.head

    def _files(self, revision: str) -> list[Path]:
        return [file for file in sorted(self.commits[self._commit(revision)].rglob("*")) if file.is_file()]

    def _name(self, file: Path) -> str:
        root = next(root for root in self.commits.values() if root in file.parents)
        return str(file.relative_to(root))

    def _entry(self, file: Path) -> dict[str, object]:
        return {"type": "file", "path": self._name(file), "size": file.stat().st_size, "oid": "1"}

    def _about(self, file: Path) -> dict[str, object]:
        raw, name = file.read_bytes(), self._name(file)
        about: dict[str, object] = {"rfilename": name, "size": len(raw), "blobId": "1"}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(raw + b"x" * self.lie).hexdigest()
            about["lfs"] = {"sha256": digest, "size": len(raw), "pointerSize": 130}
        return about

    def _mode(self, file: dict[str, Any]) -> dict[str, object]:
        large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _action(self, each: dict[str, Any]) -> dict[str, object]:
        href = f"{self._self()}/lfs/{each['oid']}"
        return {"oid": each["oid"], "size": each["size"], "actions": {"upload": {"href": href, "header": {}}}}

    def _json(self, value: object, code: int = 200) -> None:
        self._send(json.dumps(value).encode(), code)

    def _send(self, body: bytes, code: int = 200, commit: str = FIRST) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The hub's address; me/tiny is ``folder``."""
    Hub.commits, Hub.head, Hub.lie, Hub.full = {FIRST: folder}, FIRST, False, False
    Hub.blobs, Hub.uploaded = {}, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def _environment(hub: str, cwd: Path, token: str = "") -> dict[str, str]:
    there = {"HF_ENDPOINT": hub, "HF_HOME": str(cwd), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return os.environ | there | ({"HF_TOKEN": token} if token else {})


SHELL = """
import json, sys
sys.path.append({folder!r})
from tiny_runs import command
for line in sys.stdin:
    end = command(*json.loads(line))
    print(json.dumps([end.code, end.out, end.err]), flush=True)
"""


@contextmanager
def shell(hub: str, cwd: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Commands one after another in one process with this hub, since a process takes seconds to import everything."""
    program = SHELL.format(folder=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=_environment(hub, cwd),
    ) as process:

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            assert process.stdin
            assert process.stdout
            print(json.dumps(words), file=process.stdin, flush=True)
            return subprocess.CompletedProcess(words, *json.loads(process.stdout.readline()))

        yield run


def grpaint(hub: str, cwd: Path, *words: str, token: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with this hub and its cache under ``cwd``."""
    program = "from grpaint.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=_environment(hub, cwd, token),
    )
