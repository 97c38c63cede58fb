"""``grpaint view`` without a browser: what is served to whom, and how little is read for it."""

import contextlib
import html
import http.client
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

import tiny_runs
from grpaint.commands.view import shelf
from grpaint.commands.view.site import view_app
from grpaint.run.lines import append_line
from grpaint.web.server import Server
from view_runs import NAME, TOKEN, change, make_runs

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_network) -> Path:
    return make_runs(tmp_path_factory.mktemp("view"))


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The port of a server in a thread."""
    server = Server(view_app(shelf.Shelf(folder), TOKEN), ("127.0.0.1", 0), seconds=15, connections=64, grace_s=1)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def port(runs) -> Iterator[int]:
    with serving(runs) as port:
        yield port


def ask(port: int, path: str, tag: str = "") -> tuple[int, bytes, str]:
    """The status, the body and the ETag of ``/TOKEN/path``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", f"/{TOKEN}/{path}", headers={"If-None-Match": tag} if tag else {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers["ETag"] or ""
    finally:
        connection.close()


def rows_of(port: int) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(ask(port, "runs.json")[1])["rows"]}


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch):
    monkeypatch.setattr(shelf, "MOST_AGE_S", 0.0)


def test_the_table_says_how_each_run_stands(runs, port):
    os.utime(runs / "killed/metrics.jsonl", (1e9, 1e9))
    os.utime(runs / "killed/evaluations.jsonl", (1e9, 1e9))
    rows = rows_of(port)
    labels = {name: row["label"] for name, row in rows.items()}
    finished = dict.fromkeys(("first", "second", "hacked", NAME), "Finished")
    assert labels == finished | {"failed": "Failed", "killed": "Silent"}
    row = rows["second"]
    assert (row["method"], row["done"], row["total"]) == ("flow-grpo-fast", 6, 6)
    assert (row["score"]["text"], row["score"]["gain"]) == ("33.3%", pytest.approx(1 / 3))
    assert row["score"]["change"].startswith("+33.3 points [")
    assert row["cost"] == tiny_runs.lines(runs / "second/metrics.jsonl")[-1]["cost/model_evaluations"]
    assert rows["hacked"]["alarm"] == {"began": 4, "now": False}
    assert rows["first"]["alarm"] is None


def test_a_run_is_found_by_its_name_and_never_by_a_path(runs, port):
    for name in ("first", NAME):
        assert ask(port, f"run/{quote(name, safe='')}/")[0] == 200
    assert ask(port, "run/nothing/")[0] == 404
    for name in ("..", "%2e%2e", "first%2f..%2fsecond", "first%2fsamples", ".", "first/../second", "%2fetc", ""):
        assert ask(port, f"run/{name}/")[0] == 404, name
        assert ask(port, f"run/{name}/data.json")[0] == 404, name
    assert ask(port, "compare?run=first&run=..")[0] == 404
    assert ask(port, "compare?run=first")[0] == 400
    assert ask(port, f"compare?{'&'.join(f'run={number}' for number in range(9))}")[0] == 400


def test_pictures_are_served_and_no_other_file(runs, port):
    picture = ask(port, "run/first/samples/held-out/000006/00.webp")
    assert picture[:2] == (200, (runs / "first/samples/held-out/000006/00.webp").read_bytes())
    out = ["../run.toml", "%2e%2e/run.toml", "held-out/../../run.json", "rollout/000006/rollout.json"]
    for path in ("run.toml", *(f"samples/{one}" for one in [*out, "..%2f..%2fsecond/samples/held-out/000006/00.webp"])):
        assert ask(port, f"run/first/{path}")[0] == 404, path


@pytest.mark.parametrize("link", ["run", "run.toml", "evaluations.jsonl", "samples", "samples/rollout"])
def test_what_links_lead_to_outside_is_not_shown(link, runs, tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    shutil.copytree(runs / "first", outside)
    inside.mkdir()
    if link == "run":
        (inside / "run").symlink_to(outside)
    else:
        shutil.copytree(runs / "first", inside / "run")
        target = inside / "run" / link
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        target.symlink_to(outside / link)
    with serving(inside) as port:
        assert rows_of(port) == {}
        assert ask(port, "run/run/")[0] == 404
        assert ask(port, "run/run/samples/held-out/000006/00.webp")[0] == 404


def test_a_single_picture_that_is_a_link_outside_is_not_served(runs, tmp_path):
    (tmp_path / "runs").mkdir()
    run = shutil.copytree(runs / "first", tmp_path / "runs/run")
    picture = run / "samples/held-out/000006/00.webp"
    shutil.move(picture, tmp_path / "secret.webp")
    picture.symlink_to(tmp_path / "secret.webp")
    with serving(tmp_path / "runs") as port:
        assert ask(port, "run/run/samples/held-out/000006/00.webp")[0] == 404
        assert ask(port, "run/run/samples/held-out/000006/01.webp")[0] == 200


def test_pages_may_run_their_own_scripts_and_ask_their_own_server_alone(port):
    for path in ("", "run/first/", "compare?run=first&run=second"):
        page = ask(port, path)[1].decode()
        policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["connect-src"] == "'self'"
        assert all(source.startswith("'sha256-") for source in rules["script-src"].split())
        assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script>")


def test_nothing_is_written_and_no_lock_is_taken(runs, port):
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in runs.rglob("*")}

    before = state()
    ask(port, "")
    for path in (
        "run/first/",
        "run/first/data.json",
        "compare?run=first&run=second",
        "compare.json?run=first&run=second",
    ):
        assert ask(port, path)[0] == 200, path
    assert state() == before


def test_side_by_side_says_what_differs(runs, port):
    data = json.loads(ask(port, "compare.json?run=first&run=second")[1])
    assert [key for key, *_ in data["settings"]] == ["train.learning_rate"]
    assert data["noise"] is True
    assert [prompt["rows"] for prompt in data["prompts"]] == [[0, 0], [1, 1], [2, 2]]
    assert data["runs"][0]["against"] is None
    # 1/3 +- 1.96 sqrt((1/3)(2/3) 6/5 / 6)
    assert data["runs"][1]["against"] == {"text": "+33.3 points [-8.0, +74.7]", "tone": ""}


def test_runs_with_other_noise_or_prompts_are_not_taken_for_paired(runs, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("first", "second", "third"):
        shutil.copytree(runs / name.replace("third", "second"), tmp_path / "runs" / name)
    recipe = tmp_path / "runs/second/run.toml"
    recipe.write_text(recipe.read_text().replace("seed = 1000\n", "seed = 7\n"))
    lines = tiny_runs.lines(tmp_path / "runs/third/pictures.jsonl")
    for line in lines:
        line["captions"] = line["captions"][::-1]
    (tmp_path / "runs/third/pictures.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with serving(tmp_path / "runs") as port:
        data = json.loads(ask(port, "compare.json?run=first&run=second")[1])
        assert data["noise"] is False
        assert data["runs"][1]["against"]["text"] == "+33.3 points"
        aligned = json.loads(ask(port, "compare.json?run=first&run=third")[1])["prompts"]
        assert [prompt["number"] for prompt in aligned] == [2]  # the middle one of three has stayed in its place


def test_a_folder_that_may_not_be_read_is_left_out(runs, monkeypatch):
    def is_run(path, known=shelf.is_run):
        if path.name == "second":
            raise PermissionError(13, "Permission denied", str(path))
        return known(path)

    monkeypatch.setattr(shelf, "is_run", is_run)
    names = {row["name"] for row in shelf.Shelf(runs).rows()}
    assert "first" in names
    assert "second" not in names


def test_a_run_that_falls_silent_has_another_stamp(runs, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copytree(runs / "first", tmp_path / "runs/first")
    facts = tmp_path / "runs/first/run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"status": "running"}))
    shown = shelf.Shelf(tmp_path / "runs")
    monkeypatch.setattr(shelf, "silent_s", lambda folder: 1.0)
    running = shown.stamp("first")
    monkeypatch.setattr(shelf, "silent_s", lambda folder: 1e6)
    assert shown.stamp("first") != running
    assert shown.rows()[0]["stamp"] == shown.stamp("first")


def test_damaged_files_leave_a_note_and_the_other_runs(runs, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("whole", "damaged", "empty"):
        shutil.copytree(runs / "first", tmp_path / "runs" / name)
    for file in ("run.json", "run.toml", "metrics.jsonl", "evaluations.jsonl", "pictures.jsonl"):
        (tmp_path / "runs/damaged" / file).write_text("{{{ nonsense\n")
        (tmp_path / "runs/empty" / file).write_text("")
    with serving(tmp_path / "runs") as port:
        rows = rows_of(port)
        assert rows["whole"]["label"] == "Finished"
        assert rows["damaged"]["label"] == "Status not known"
        assert len(rows["damaged"]["notes"]) == 4
        for name in rows:
            assert ask(port, f"run/{name}/")[0] == 200
        assert ask(port, "compare?run=damaged&run=empty&run=whole")[0] == 200


class Opened:
    """Counts the files below a folder that this process opens within the block."""

    hooked = False
    folder, names = "", []  # of the block under way

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> list[str]:
        if not Opened.hooked:  # such hooks cannot be removed
            sys.addaudithook(self._on_event)
            Opened.hooked = True
        Opened.folder, Opened.names = str(self._folder), []
        return Opened.names

    def __exit__(self, *_: object) -> None:
        Opened.folder = ""

    @staticmethod
    def _on_event(event: str, values: tuple) -> None:
        if Opened.folder and event == "open" and str(values[0]).startswith(Opened.folder):
            Opened.names.append(str(values[0]).removeprefix(Opened.folder).lstrip("/"))


def test_a_poll_reads_only_the_run_that_has_changed_and_an_unchanged_table_is_not_sent(runs, tmp_path):
    folder = shutil.copytree(runs, tmp_path / "runs")
    with serving(folder) as port:
        with Opened(folder) as files:
            status, body, tag = ask(port, "runs.json")
        assert status == 200
        assert {name.partition("/")[0] for name in files} == {run.name for run in folder.iterdir()}
        with Opened(folder) as files:
            assert ask(port, "runs.json", tag)[:2] == (304, b"")
        assert files == []
        line = tiny_runs.lines(folder / "second/metrics.jsonl")[-1]
        append_line(folder / "second/metrics.jsonl", line | {"iteration": 7})
        with Opened(folder) as files:
            status, body, _ = ask(port, "runs.json", tag)
        assert status == 200
        assert next(row for row in json.loads(body)["rows"] if row["name"] == "second")["done"] == 7
        assert {name.partition("/")[0] for name in files} == {"second"}


def test_pages_are_made_once_for_all_tabs(runs, tmp_path):
    folder = shutil.copytree(runs, tmp_path / "runs")
    with serving(folder) as port:
        with Opened(folder) as files:
            assert ask(port, "run/first/data.json")[0] == 200
        assert "first/evaluations.jsonl" in files
        with Opened(folder) as files:
            _, _, tag = ask(port, "run/first/data.json")
            assert ask(port, "run/first/data.json", tag)[0] == 304
        assert files == []
        change(folder / "first", status="failed")
        with Opened(folder) as files:
            assert ask(port, "run/first/data.json", tag)[0] == 200
        assert {name.partition("/")[0] for name in files} == {"first"}


def test_of_a_long_file_only_its_ends_are_read(tmp_path):
    folder = tmp_path / "runs/long"
    folder.mkdir(parents=True)
    wide = {"prompts": 300, "steps": 2, "strict_by_prompt": [0.25] * 300}
    with (folder / "evaluations.jsonl").open("w") as file:
        file.writelines(json.dumps({"iteration": number, "strict": 0.5, **wide}) + "\n" for number in range(4_000))
    size = (folder / "evaluations.jsonl").stat().st_size
    before = _bytes_read()
    row = shelf.Shelf(tmp_path / "runs").rows()[0]
    assert row["score"]["iteration"] == 3_999
    assert size > 6 << 20
    assert _bytes_read() - before < 1 << 20


def _bytes_read() -> int:
    """What this process has asked the system to read, as the kernel counts it."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "nowhere: no such folder; name the one that holds run folders (--runs of grpaint train)."),
        (["first"], "first: one run; name the folder that holds it, "),
        ([".", "--port", "70000"], "--port 70000: from 1 to 65535, or 0 for a free one."),
        ([".", "--token-file", "none"], "--token-file none: cannot be read: No such file or directory."),
        ([".", "--token-file", "spaced"], "--token-file spaced: only letters, digits and - . _ ~ fit into an address."),
    ],
)
def test_a_wrong_call_is_one_line(words, reason, runs):
    with contextlib.chdir(runs):
        Path("spaced").write_text("a token of / many words")
        done = tiny_runs.command("view", *words)
        Path("spaced").unlink()
    assert done.code == 2
    assert reason in " ".join(done.err.split())
