"""``grpaint vote`` as a real process: links, who is refused and how, a server that is killed, and the export."""

import contextlib
import http.client
import io
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

import tiny_runs
from grpaint.storage.ballots import Question
from grpaint.storage.votes import VOTES_FILE, VoteFile
from tiny_runs import command

ASKING = '[rewards.people]\nkind = "votes"\n'


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch) -> Path:
    """A run with three groups of four images in question."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/it")
    run.mkdir(parents=True)
    (run / "run.toml").write_text(ASKING)
    with VoteFile(run / VOTES_FILE, create=True) as votes:
        votes.ask([Question(key, f"caption {key}", [png(60 * place + n) for place in range(4)], 3)
                   for n, key in enumerate("abc")])  # fmt: skip
    return run


@contextlib.contextmanager
def serving(*words: str) -> Iterator[tuple]:
    """The process, its port, and the link of each voter."""
    process = tiny_runs.process("vote", "it", *words)
    links, line = {}, ""
    while (line := process.stdout.readline()) and "waiting groups" not in line:
        name, _, link = line.strip().rpartition("  ")
        links[name.strip()] = link
    assert line, process.stderr.read()
    port = int(re.search(r":(\d+)/", next(iter(links.values())))[1])
    try:
        yield process, port, {name: link[link.index("/", 8) :] for name, link in links.items()}
    finally:
        process.kill()
        process.communicate()


def ask(port: int, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, sent, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def test_who_may_vote_on_what_and_a_server_that_is_killed_and_started_again(run):
    with serving("--port", "0", "--voter", "Ann", "--voter", "Ben") as (process, port, links):
        assert list(links) == ["Ann", "Ben"]
        ann, ben = links.values()
        question = json.loads(ask(port, f"{ann}question")[1])["question"]
        number, places = question["number"], question["places"]
        assert sorted(places) == [0, 1, 2, 3]
        assert question["caption"].startswith("caption ")
        assert ask(port, f"{ann}images/{number}-0.png")[1].startswith("�PNG")

        vote = {"question": number, "picks": [2, 0]}
        stranger = "/AAAAAAAAAAAAAAAAAAAAAA/"
        for path in ("/", "/question", "/vote", f"{stranger}question", f"{ann[:-1]}x/question", ann[:-1]):
            assert ask(port, path)[0] == 403, path
        assert ask(port, f"{stranger}vote", vote)[0] == 403
        assert ask(port, f"{ann}question", Host="evil.example")[0] == 421
        for path in (
            "images/99-0.png",
            f"images/{number}-9.png",
            f"images/{'9' * 500}-0.png",
            "images/../x-y.png",
            "x",
        ):
            assert ask(port, ann + path)[0] == 404, path
        for body in (b"", b"{", b"[]", b"\xff", {"question": number}, {"question": True, "picks": []},
                     {"question": number, "picks": [0.5]}, {"question": 10**30, "picks": []},
                     {"question": number, "picks": [0], "more": 1}, b"[" * 60_000):  # fmt: skip
            status, text = ask(port, f"{ann}vote", body)
            assert status == 400, body
            assert "\n" not in json.loads(text)["refused"]
        for body in ({"question": 99, "picks": [0]}, {"question": number, "picks": [4]},
                     {"question": number, "picks": [0, 0]}, {"question": number, "picks": [0, 1, 2, 3]}):  # fmt: skip
            assert ask(port, f"{ann}vote", body)[0] == 409, body
        with contextlib.suppress(ConnectionError):  # it may be closed while it is sent
            assert ask(port, f"{ann}vote", bytes(32 << 20))[0] == 413
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"POST /")
            assert ask(port, f"{ann}vote", vote)[0] == 200
            status, text = ask(port, f"{ann}vote", vote)
        assert (status, json.loads(text)["refused"]) == (409, "You have voted on this question.")
        assert json.loads(text)["question"]["number"] != number
        process.kill()
    with serving("--port", str(port)) as (process, again, links):
        assert again == port
        assert list(links.values()) == [ann, ben]
        assert ask(port, f"{ann}vote", vote)[0] == 409
        assert ask(port, f"{ben}vote", {"question": number, "picks": []})[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with VoteFile(run / VOTES_FILE) as votes:
        rankings = votes.rankings("abc"[number - 1])
        assert [(one.voter, one.picks) for one in rankings] == [("Ann", (2, 0)), ("Ben", ())]
        assert votes.standing() == (3, 2)


def test_many_connections_and_clients_that_never_read_stop_nothing(run):
    with serving("--port", "0") as (_, port, links):
        (ann,) = links.values()
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        for one in idle[:50]:
            one.sendall(f"GET {ann} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        start = time.monotonic()
        assert ask(port, f"{ann}question")[0] == 200
        assert time.monotonic() - start < 20
        for one in idle:
            one.close()


def test_preferences_are_exported_as_data_sets_read_them(run):
    with VoteFile(run / VOTES_FILE) as votes:
        ann, ben = votes.enrol(["Ann", "Ben"])
        votes.vote(ann.number, 1, [2, 0])
        votes.vote(ben.number, 1, [1])
        votes.vote(ann.number, 2, [])
        votes.vote(ben.number, 3, [3, 2, 1])
    end = command("vote", "it", "--export", "pairs.parquet")
    assert end.code == 0, end.err
    assert end.out.startswith("pairs.parquet: 14 pairs of 2 groups")
    table = pyarrow.parquet.read_table("pairs.parquet")
    rows = table.to_pylist()
    images = {png(60 * place + n): (key, place) for n, key in enumerate("abc") for place in range(4)}
    pairs = []
    for row in rows:
        first, second = (images[row[name]["bytes"]] for name in ("image_0", "image_1"))
        assert first[0] == second[0]
        assert row["caption"] == f"caption {first[0]}"
        better, worse = (first[1], second[1]) if row["label_0"] == 1 else (second[1], first[1])
        pairs.append((row["voter"], row["group"], better, worse))
    assert pairs == [("Ann", "a", 2, 0), ("Ann", "a", 2, 1), ("Ann", "a", 2, 3), ("Ann", "a", 0, 1), ("Ann", "a", 0, 3),
                     ("Ben", "a", 1, 0), ("Ben", "a", 1, 2), ("Ben", "a", 1, 3),
                     ("Ben", "c", 3, 0), ("Ben", "c", 3, 1), ("Ben", "c", 3, 2), ("Ben", "c", 2, 0), ("Ben", "c", 2, 1),
                     ("Ben", "c", 1, 0)]  # fmt: skip
    assert {row["label_0"] for row in rows} == {0.0, 1.0}
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(table.column_names)
    assert features["image_0"] == {"_type": "Image"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no run folder"),
        (["it", "--export", "pairs.csv"], "must end in .parquet"),
        (["it", "--export", "pairs.parquet"], "no voter has preferred an image yet"),
        (["it", "--voter", " "], "a name of 1 to 60 characters"),
        (["it", "--port", "70000"], "--port 70000"),
        (["it", "--host", "192.0.2.1", "--port", "0"], "--host 192.0.2.1"),
        (["other"], 'it asks no people; a run that does has [rewards.NAME] with kind = "votes"'),
        (["foreign"], "no regular file"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(words, message):
    for name, text in (("other", '[rewards.checker]\nkind = "scenes-checker"\n'), ("foreign", ASKING)):
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/run.toml").write_text(text)
    Path(f"runs/foreign/{VOTES_FILE}").symlink_to("/etc/passwd")
    end = command("vote", *words)
    assert (end.code, end.err.count("\n")) == (2, 1), end.err
    assert message in end.err
    assert not Path("pairs.parquet").exists()
