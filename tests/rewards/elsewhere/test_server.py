"""``grpaint reward serve`` as a real process: the protocol, what it refuses, and how it ends."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import pytest
import torch
from PIL import Image

import tiny_runs
from grpaint.core import Prompt, Reward, RewardError
from grpaint.recipe.build import build
from grpaint.rewards.elsewhere.limits import Limits, Malformed
from grpaint.rewards.elsewhere.remote import Remote
from grpaint.rewards.elsewhere.scoring import ScoringQueue
from grpaint.rewards.elsewhere.server import RewardServer, identity
from grpaint.rewards.elsewhere.wire import pack, unpack
from grpaint.rewards.scenes import SceneDistance
from grpaint.scenes.world import SceneData
from tiny_runs import command

TOKEN = "sesame-sesame-sesame"
SLOW = """
import time
from pathlib import Path

def score(images, prompts):
    if any(prompt.text == "broken" for prompt in prompts):
        raise ValueError("a prompt that is broken")
    if any(prompt.text == "slow" for prompt in prompts):
        Path("begun").touch()
        time.sleep(float(prompts[0].metadata["seconds"]))
    return images.mean((1, 2, 3))
"""


@contextlib.contextmanager
def serving(folder, *words):
    """A process that serves; gives it, its first lines, and its port."""
    folder.mkdir(exist_ok=True)
    (folder / "slow.py").write_text(SLOW)
    program = "from grpaint.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "reward", "serve", *words, "--port", "0", "--threads", "1"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"REWARD_TOKEN": TOKEN},
    )
    first = ""
    while "serving" not in first:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        first += line
    try:
        yield process, first, int(re.search(r":(\d+) identity", first)[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    words = ("slow.py:score", "--token-env", "REWARD_TOKEN", "--max-mib", "1", "--timeout", "3")
    with serving(tmp_path_factory.mktemp("slow"), *words) as (_, first, port):
        assert "token" not in first
        yield port


def ask(port, method="POST", path="/score", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Authorization": f"Bearer {TOKEN}"} | {name.replace("_", "-"): text for name, text in headers.items()}
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def png(value, size=(4, 2)):
    into = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(into, "PNG")
    return base64.b64encode(into.getvalue()).decode()


def picture(value=0.5, text="a", **metadata):
    return pack(torch.full((1, 3, 2, 2), value), [Prompt(text, metadata)], "float32")


SAFE = {"Content_Type": "application/x-safetensors"}


def test_health_identifies_the_reward_and_both_body_formats_are_scored(slow):
    status, about = ask(slow, "GET", "/health")
    assert (status, about["name"]) == (200, "slow.py:score")
    assert re.fullmatch("[0-9a-f]{16}", about["identity"])
    status, answer = ask(slow, body=picture(0.25), **SAFE)
    assert (status, answer) == (200, {"scores": [0.25], "identity": about["identity"]})
    body = json.dumps({"images": [png(51), png(255)], "prompts": ["a", {"text": "b", "metadata": {"n": 1}}]})
    status, answer = ask(slow, body=body, Content_Type="application/json")
    assert answer["scores"] == pytest.approx([0.2, 1.0])


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"Authorization": "Bearer wrong"}, 401, "no token"),
        ({"Authorization": ""}, 401, "no token"),
        ({"path": "/"}, 404, "POST /score"),
        ({"path": "/score/"}, 404, "POST /score"),
        ({"Content_Type": "application/octet-stream"}, 400, "content type"),
        ({"body": b"\x80\x04\x95rubbish"}, 400, "no safetensors file"),
        ({"body": b""}, 400, "no safetensors file"),
        ({"body": picture(float("nan"))}, 400, "finite"),
        ({"body": bytes(2 << 20)}, 413, "larger than 1 MiB"),
        ({"body": picture(text="broken")}, 500, "raised ValueError: a prompt that is broken"),
        ({"body": b'{"images": ["iVBORw0K"], "prompts": ["a"]}', "Content_Type": "application/json"}, 400, "no PNG"),
        ({"body": b"[" * 9000, "Content_Type": "application/json"}, 400, "no JSON object"),
    ],
    ids=str,
)
def test_a_refusal_has_a_reason(slow, change, status, words):
    given = {"body": picture(), **SAFE} | change
    code, answer = ask(slow, **given)
    assert code == status
    assert words in answer["error"]


def test_a_picture_that_unfolds_to_gigabytes_is_not_unfolded():
    for side in (9_000, 60_000):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        small = base64.b64encode(b"\x89PNG\r\n\x1a\n" + checked + b"\0\0\0\0IDAT").decode()
        with pytest.raises(Malformed, match="too many pixels"):
            unpack(json.dumps({"images": [small], "prompts": ["a"]}).encode(), "application/json")


@contextlib.contextmanager
def dawdling(port):
    """A connection whose body never comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=600) as idle:
        head = f"POST /score HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n"
        idle.sendall(head.encode())
        yield idle


def test_a_slow_client_is_disconnected_and_others_are_served(slow):
    start = time.monotonic()
    with dawdling(slow) as idle:
        assert ask(slow, "GET", "/health")[0] == 200
        assert b"408" in idle.recv(1000)
    assert time.monotonic() - start > 2


@contextlib.contextmanager
def impatient(ask=lambda images, prompts: images.mean((1, 2, 3)), **limits):
    """The port of a server in a thread that waits half a second; it has ended when this has."""
    about = {"name": "mean", "version": "0", "identity": "0"}
    server = RewardServer(("127.0.0.1", 0), ask, about, TOKEN, Limits(**{"seconds": 0.5} | limits), print)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def wait_until_closed(connection, drip):
    """Send ``drip`` every 50 ms until the server lets go."""
    connection.settimeout(0.05)
    for _ in range(400):
        try:
            connection.sendall(drip)
            if not connection.recv(1000):
                return
        except TimeoutError:
            continue
        except OSError:
            return
    pytest.fail("held on to for 20 seconds")


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"", b"G"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"x"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n", b"X-Slow: x\r\n"),
    ],
    ids=["silence", "request line", "one header", "headers without end"],
)
def test_a_connection_without_a_whole_header_is_closed(first, drip):
    with impatient() as port:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(first)
            wait_until_closed(connection, drip)
        assert time.monotonic() - start > 0.45
        assert ask(port, "GET", "/health")[0] == 200


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["silence", "drips"])
def test_header_and_body_have_one_limit_together(drip):
    with impatient(seconds=2) as port:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\n")
            time.sleep(1.2)
            connection.sendall(f"Authorization: Bearer {TOKEN}\r\nContent-Length: 99999\r\n\r\n".encode())
            answer = None
            while answer is None:
                with contextlib.suppress(TimeoutError):
                    connection.sendall(drip)
                    answer = connection.recv(1000)
        assert b" 408 " in answer
        assert 2 <= time.monotonic() - start < 3  # one limit each would be 3.2


def test_a_connection_too_many_is_refused_at_once_though_others_say_nothing():
    with impatient(seconds=20, connections=2) as port, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as third:
            assert b" 503 " in third.recv(1000)


def test_a_body_without_a_length_is_refused_unread():
    with impatient() as port:
        for headers in ({}, {"Content_Length": "5"}):
            status, answer = ask(port, body=iter([b"x"] * 3), Transfer_Encoding="chunked", **headers)
            assert (status, answer) == (411, {"error": "Content-Length is missing"})


def test_a_request_with_a_wrong_token_is_refused_on_every_path():
    with impatient() as port:
        for method, path in (("GET", "/health"), ("GET", "/"), ("POST", "/score"), ("PUT", "/score")):
            assert ask(port, method, path, Authorization="Bearer wrong")[0] == 401


def test_the_client_reads_a_refusal_while_it_is_still_sending(monkeypatch):
    monkeypatch.setenv("FAR_TOKEN", TOKEN)
    with impatient(seconds=60, bytes=1 << 20) as port:
        remote = Remote((f"http://127.0.0.1:{port}",), token_env="FAR_TOKEN")
        with pytest.raises(RewardError, match="answered 413: the body is larger than 1 MiB; send smaller batches"):
            remote(torch.zeros(16, 3, 256, 256), [Prompt("a")] * 16)


def test_a_client_that_does_not_read_its_answer_is_disconnected():
    def fail(images, prompts):
        raise RewardError("x" * (30 << 20))

    request = f"POST /score HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    request += f"Content-Type: {SAFE['Content_Type']}\r\nContent-Length: {len(picture())}\r\n\r\n".encode()
    with impatient(fail) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request + picture())
        time.sleep(3)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
        assert received < 30 << 20


def test_the_server_stops_at_once_beside_a_silent_connection():
    start = time.monotonic()
    with impatient(seconds=60) as port:
        silent = socket.create_connection(("127.0.0.1", port))
        assert ask(port, "GET", "/health")[0] == 200
    silent.close()
    assert time.monotonic() - start < 20


def test_scores_that_take_too_long_are_given_up(slow):
    status, answer = ask(slow, body=picture(text="slow", seconds=4), **SAFE)
    assert (status, answer["error"]) == (504, "no scores within 3 s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_stops_after_the_requests_under_way(tmp_path, number):
    with serving(tmp_path, "slow.py:score", "--token-env", "REWARD_TOKEN") as (process, _, port):
        answers = []
        body = picture(0.75, text="slow", seconds=1)
        asking = threading.Thread(target=lambda: answers.append(ask(port, body=body, **SAFE)))
        asking.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        for _ in range(2):  # the second changes nothing
            process.send_signal(number)
            time.sleep(0.2)
        asking.join(600)
        assert answers[0][1]["scores"] == [0.75]
        assert process.wait(600) == 0
        assert process.stderr.read() == ""


def test_a_reward_of_ours_over_http_is_bit_for_bit_the_same(tmp_path, monkeypatch):
    with serving(tmp_path, "scenes-distance") as (_, first, port):
        monkeypatch.setenv("FAR_TOKEN", re.match(r"token (\S{40,})\n", first)[1])
        prompts = SceneData(references=True).prompts(4, 0, 0)
        prompts = [prompts[i // 2] for i in range(8)]
        images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        remote = Remote((f"http://127.0.0.1:{port}",), token_env="FAR_TOKEN", needs_reference=True)
        assert torch.equal(remote(images, prompts), SceneDistance()(images, prompts))


def test_waiting_requests_are_scored_in_one_batch_and_fail_separately():
    seen, begun, gate = [], threading.Event(), threading.Event()

    def score(images, prompts):
        begun.set()
        gate.wait()
        seen.append(len(images))
        if any(prompt.text == "broken" for prompt in prompts):
            raise RewardError("a prompt that is broken")
        return images.mean((1, 2, 3))

    bench, jobs = ScoringQueue(score, 4), {}

    def send(number, text):
        jobs[number] = bench.score(torch.full((2, 3, 2, 2), number / 8), [Prompt(text)] * 2, 600)

    threads = []
    for number, text in enumerate(["first", "a", "b", "broken", "c"]):
        threads.append(threading.Thread(target=send, args=(number, text)))
        threads[-1].start()
        begun.wait()  # the first is under way before another waits
        while len(bench._waiting) < number:
            time.sleep(0.005)
    gate.set()
    for thread in threads:
        thread.join()
    assert seen == [2, 4, 4, 2, 2]  # the one that was under way; a and b; broken and c, then each alone
    assert [jobs[n].scores for n in (0, 1, 2, 4)] == [[0.0, 0.0], [0.125] * 2, [0.25] * 2, [0.5] * 2]
    assert (jobs[3].scores, jobs[3].error) == (None, "a prompt that is broken")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scenes-checkr", "--port", "0"], 'Did you mean "scenes-checker"?'),
        (["scenes-checker", "--port", "0", "--host", "0.0.0.0"], "others can reach that"),
        (["scenes-checker", "--port", "0", "--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN: that environment variable"),
        (["scenes-checker", "--port", "0", "--token-file", "no/such"], "--token-file no/such: cannot be read"),
        (["scenes-checker", "--port", "0", "--token-file", "/dev/zero"], "--token-file /dev/zero: no regular file"),
        (["scenes-checker", "--port", "0", "--set", "weight=2"], "weight the run's"),
        (["scenes-checker", "--port", "70000"], "out of range"),
        (
            [
                "vlm-judge",
                "--port",
                "0",
                "--set",
                "measure=pairwise",
                "--set",
                "url=http://127.0.0.1:9/v1",
                "--set",
                "model=m",
            ],
            "it compares the images of a prompt",
        ),
    ],
)
def test_impossible_services_are_refused_in_one_line(words, message, tmp_path):
    with tiny_runs.folder(tmp_path):
        end = command("reward", "serve", *words)
    assert end.code == 2
    assert message in end.err
    assert end.err.count("\n") == 1


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        end = command("reward", "serve", "scenes-scorer", "--port", str(port))
    assert (end.code, end.err) == (2, f"grpaint: --host 127.0.0.1 --port {port}: Address already in use.\n")


def test_what_json_cannot_hold_stays_behind_and_uint8_rounds():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    reference = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
    prompts = [Prompt("a", {"n": [1, "x"], "o": object(), "nan": float("nan")}, reference), Prompt("b", {}, reference)]
    for pixels, error in (("float32", 0.0), ("uint8", 0.5 / 255 + 1e-6)):
        body = pack(images, prompts, pixels)
        back, entries = unpack(body, "application/x-safetensors")
        assert (back - images).abs().max() <= error
        assert [(prompt.text, prompt.metadata) for prompt in entries] == [("a", {"n": [1, "x"]}), ("b", {})]
        assert (entries[1].reference - reference).abs().max() <= error
        assert body.count(b'"reference.') == 1  # both images of the group name the one


def test_the_identity_of_a_function_with_metadata_covers_its_file(tmp_path):
    kind, digests = f"{tmp_path / 'own.py'}:own", []
    for constant in (1, 2):
        (tmp_path / "own.py").write_text(f"def own(images, texts, metadata):\n    return [{constant}.0] * len(texts)\n")
        reward, settings = build(Reward, {"kind": kind}, "reward")
        digests.append(identity(reward, settings))
    assert digests[0] != digests[1]
