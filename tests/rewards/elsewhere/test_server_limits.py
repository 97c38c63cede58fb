"""What a reward server refuses before it spends memory on it, and what it says when it cannot score."""

import base64
import contextlib
import http.client
import io
import json
import struct
import sys
import threading
import time
import tracemalloc
from functools import partial

import pytest
import torch
from PIL import Image

from grpaint.core import Prompt, RewardError
from grpaint.learn.table import score_images
from grpaint.rewards.elsewhere.limits import Limits, Malformed, TooLarge
from grpaint.rewards.elsewhere.remote import Remote
from grpaint.rewards.elsewhere.scoring import ScoringQueue
from grpaint.rewards.elsewhere.server import RewardServer
from grpaint.rewards.elsewhere.wire import pack, read_request, unpack

TOKEN = "sesame-sesame-sesame"
ABOUT = {"name": "mean", "version": "0", "identity": "0"}
SAFE, JSON = "application/x-safetensors", "application/json"
SMALL = Limits(pixels=5000, images=3, characters=100, depth=8, values=1000)


def png(width, height, mode="1"):
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def as_json(images=(), prompts=(), text=""):
    return text.encode() or json.dumps({"images": images, "prompts": prompts}).encode()


def tensors(text="a", metadata=(), **changes):
    """A body whose header's entry for its images has ``changes``."""
    body = pack(torch.zeros(1, 3, 2, 2), [Prompt(text, dict(metadata))], "uint8")
    (size,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + size])
    header["images"] |= changes
    return framed(json.dumps(header), body[8 + size :])


def framed(header, data=bytes(12)):
    return struct.pack("<Q", len(header)) + header.encode() + data


PROMPTS = '"__metadata__": {"prompts": "[\\"a\\"]"}'
IMAGES = '"images": {"dtype": "U8", "shape": [1, 3, 2, 2], "data_offsets": [0, 12]}'


@pytest.mark.parametrize(
    ("body", "kind", "error", "words"),
    [
        (as_json([png(60, 60)] * 2, ["a"] * 2), JSON, TooLarge, "too many pixels: 7200 in all pictures together"),
        (as_json([png(60, 60)], [{"text": "a", "reference": png(60, 60)}]), JSON, TooLarge, "too many pixels: 7200"),
        (as_json([png(9000, 9000)], ["a"]), JSON, Malformed, "too many pixels"),
        (as_json([png(2, 2)] * 4, ["a"] * 4), JSON, TooLarge, "4 images in a request, and at most 3"),
        (as_json([png(2, 2), png(2, 3)], ["a"] * 2), JSON, Malformed, "all of one size"),
        (as_json([], []), JSON, Malformed, "one or more"),
        (as_json([png(2, 2)], ["a" * 101]), JSON, TooLarge, "a prompt's text has 101 characters"),
        (
            as_json([png(2, 2)], [{"text": "a", "metadata": {"b": "c" * 101}}]),
            JSON,
            TooLarge,
            "metadata has 110 characters",
        ),
        (as_json(text='{"images": ' + "[" * 9 + "]" * 9 + "}"), JSON, Malformed, "JSON of more than 8 levels"),
        (as_json(text="[" * 100_000), JSON, Malformed, "JSON of more than 8 levels"),
        (as_json(text='{"a": [' + "0," * 5000 + "0]}"), JSON, TooLarge, "more than 1000 values"),
        (as_json(text='{"images": [], "images": [], "prompts": []}'), JSON, Malformed, "the key 'images' twice"),
        (as_json(text='{"images": [NaN], "prompts": []}'), JSON, Malformed, "NaN in the JSON"),
        (as_json(text='{"images": [1e999], "prompts": []}'), JSON, Malformed, "1e999 in the JSON"),
        (as_json(text=f'{{"a": {"9" * 5000}}}'), JSON, Malformed, "a number of 5000 digits"),
        (b"\xff\xfe{}", JSON, Malformed, "not JSON"),
        (tensors(dtype="F8_E4M3"), SAFE, Malformed, "images has dtype 'F8_E4M3'; it must be uint8"),
        (tensors(dtype="I64"), SAFE, Malformed, "dtype 'I64'"),
        (tensors(shape=[1, 3, -2, -2]), SAFE, Malformed, "images has shape [1, 3, -2, -2]"),
        (tensors(shape=[0, 3, 2, 2]), SAFE, Malformed, "images has shape [0, 3, 2, 2]"),
        (tensors(shape=[1, 3, 2.0, 2]), SAFE, Malformed, "images has shape [1, 3, 2.0, 2]"),
        (tensors(shape=[1, 1, 2, 2]), SAFE, Malformed, "images has shape [1, 1, 2, 2]"),
        (tensors(shape=[1, 3, 2**40, 2**40]), SAFE, TooLarge, "too many pixels"),
        (tensors(shape=[2**40, 3, 1, 1]), SAFE, TooLarge, "images in a request"),
        (tensors(data_offsets=[0, 2**60]), SAFE, Malformed, "no safetensors file"),
        (tensors(data_offsets=[-12, 0]), SAFE, Malformed, "no safetensors file"),
        (tensors("a" * 101), SAFE, TooLarge, "a prompt's text has 101 characters"),
        (tensors(metadata={"b": [[[[[[[[[[1]]]]]]]]]]}), SAFE, Malformed, "JSON of more than 8 levels"),
        (framed(f"{{{PROMPTS}, {IMAGES}, {IMAGES}}}"), SAFE, Malformed, "the key 'images' twice"),
        (framed(f'{{{PROMPTS}, {IMAGES}, "more": {{}}}}'), SAFE, Malformed, "a tensor 'more'"),
        (framed(f"{{{IMAGES}}}"), SAFE, Malformed, "no text __metadata__.prompts"),
        (framed(f'{{"__metadata__": {{"prompts": "[]"}}, {IMAGES}}}'), SAFE, Malformed, "lists of one length"),
        (struct.pack("<Q", 2**63), SAFE, Malformed, "its header is longer than it"),
        (b"", SAFE, Malformed, "no safetensors file"),
    ],
    ids=lambda value: f"{value[:60]!r}" if isinstance(value, bytes) else "",
)
def test_a_request_beyond_a_limit_or_of_another_form_is_refused_with_the_reason(body, kind, error, words):
    with pytest.raises(error) as raised:
        unpack(body, kind, SMALL)
    assert words in str(raised.value)
    assert type(raised.value) is error
    assert len(str(raised.value)) < 300


def test_a_request_at_its_limits_is_read():
    metadata = {"b": "c" * 90}
    body = as_json([png(50, 50)], [{"text": "a" * 100, "metadata": metadata, "reference": png(50, 50)}])
    images, prompts = unpack(body, JSON, SMALL)
    assert images.shape == (1, 3, 50, 50)
    assert prompts[0].reference.shape == (3, 50, 50)
    assert (prompts[0].text, prompts[0].metadata) == ("a" * 100, metadata)


def test_a_lone_surrogate_in_a_prompt_is_read_as_the_replacement_character():
    _, prompts = unpack(as_json([png(2, 2)], [{"text": "a \ud800", "metadata": {"b": "\udfff"}}]), JSON)
    assert (prompts[0].text, prompts[0].metadata) == ("a \ufffd", {"b": "\ufffd"})


def test_pictures_of_many_pixels_in_few_bytes_are_refused_before_they_take_memory():
    body = as_json([png(5000, 5000)] * 4, ["a"] * 4)
    assert len(body) < 50_000
    tracemalloc.start()
    with pytest.raises(TooLarge, match="too many pixels: 100000000 in all pictures together, and at most 67108864"):
        unpack(body, JSON)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_a_batch_is_not_allocated_by_its_first_picture_if_the_others_are_smaller():
    body = as_json([png(8000, 8000), *[png(1, 1)] * 4000], ["a"] * 4001)
    with pytest.raises(Malformed, match="all of one size"):
        read_request(body, JSON, Limits())


# -- a server ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(reward, log=lambda line: None, **limits):
    """The port and the scoring queue of a server in a thread."""
    limits = Limits(**{"seconds": 60.0} | limits)
    server = RewardServer(("127.0.0.1", 0), partial(score_images, "mean", reward), ABOUT, TOKEN, limits, log)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, server.queue
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def ask(port, body=None, kind=SAFE, headers=()):
    """Score ``body``, or ask for the health; the status, the answer, and its headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    every = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind, **dict(headers)}
    try:
        connection.request("POST" if body else "GET", "/score" if body else "/health", body, every)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def picture(value=0.5, text="a"):
    return pack(torch.full((1, 3, 2, 2), value), [Prompt(text)], "float32")


def _raise(error):
    raise error


MISBEHAVIOUR = {
    "exit": (lambda: sys.exit(0), "reward mean raised SystemExit: 0"),
    "interrupt": (lambda: _raise(KeyboardInterrupt()), "reward mean raised KeyboardInterrupt"),
    "generator": (lambda: _raise(GeneratorExit()), "reward mean raised GeneratorExit"),
    "memory": (lambda: _raise(MemoryError()), "reward mean raised MemoryError"),
    "pipe": (lambda: _raise(BrokenPipeError(32, "Broken pipe")), "reward mean raised BrokenPipeError"),
    "own": (lambda: _raise(type("Mine", (BaseException,), {})("own")), "reward mean raised Mine: own"),
    "deep": (lambda: MISBEHAVIOUR["deep"][0](), "reward mean raised RecursionError"),
}


@pytest.mark.parametrize("batch", [0, 8])
def test_whatever_a_reward_raises_ends_its_request_alone(batch):
    def reward(images, prompts):
        for prompt in prompts:
            if prompt.text in MISBEHAVIOUR:
                MISBEHAVIOUR[prompt.text][0]()
        return images.mean((1, 2, 3))

    lines = []
    with serving(reward, lines.append, batch=batch) as (port, _):
        for text, (_, words) in MISBEHAVIOUR.items():
            status, answer, _ = ask(port, picture(text=text))
            assert (status, words in answer["error"]) == (500, True)
            assert words in lines[-1]
            assert ask(port, picture(0.25))[:2] == (200, {"scores": [0.25], "identity": "0"})
            assert ask(port)[:2] == (200, ABOUT | {"waiting": 0})


def test_no_memory_to_join_a_batch_fails_no_request(monkeypatch):
    begun, gate, jobs = threading.Event(), threading.Event(), {}

    def score(images, prompts):
        begun.set()
        gate.wait()
        return images.mean((1, 2, 3))

    bench = ScoringQueue(score, 8)
    threads = [
        threading.Thread(
            target=lambda n=n: jobs.update({n: bench.score(torch.full((1, 3, 2, 2), n / 4), [Prompt("a")], 60)})
        )
        for n in range(3)
    ]
    for number, thread in enumerate(threads):
        thread.start()
        begun.wait()
        while bench.waiting < number:
            time.sleep(0.005)
    monkeypatch.setattr("grpaint.rewards.elsewhere.scoring.torch.cat", lambda _: _raise(MemoryError()))
    gate.set()
    for thread in threads:
        thread.join()
    assert [jobs[n].scores for n in range(3)] == [[0.0], [0.25], [0.5]]


def test_requests_end_at_once_and_health_says_so_where_the_scoring_thread_has_ended(monkeypatch):
    with serving(lambda images, prompts: images.mean((1, 2, 3))) as (port, queue):
        assert ask(port, picture())[0] == 200
        monkeypatch.setattr(queue, "_fits", lambda _: _raise(MemoryError()))
        begun, gate = threading.Event(), threading.Event()

        def slow(images, prompts):
            begun.set()
            gate.wait(60)
            return images.mean((1, 2, 3))

        monkeypatch.setattr(queue, "_score", slow)
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(ask(port, picture()))) for _ in range(3)]
        threads[0].start()
        begun.wait()
        for thread in threads[1:]:
            thread.start()
        while queue.waiting < 2:
            time.sleep(0.005)
        gate.set()  # the second finds a third behind it, and no memory
        for thread in threads:
            thread.join()
        assert sorted(status for status, _, _ in answers) == [200, 503, 503]
        start = time.monotonic()
        status, answer, _ = ask(port, picture())
        assert (status, answer) == (
            503,
            {"error": "the scoring thread has ended (MemoryError); start the server again"},
        )
        status, answer, _ = ask(port)
        assert (status, answer["error"]) == (503, "the scoring thread has ended (MemoryError); start the server again")
        assert time.monotonic() - start < 30
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAR_TOKEN", TOKEN)
            remote = Remote((f"http://127.0.0.1:{port}",), token_env="FAR_TOKEN", retries=1, backoff_s=0.01)
            with pytest.raises(RewardError, match=r"answered 503: the scoring thread has ended .* asked 2 times"):
                remote.start()


def test_health_says_when_a_request_has_been_scored_for_too_long_and_how_many_wait():
    gate = threading.Event()

    def stuck(images, prompts):
        if prompts[0].text == "stuck":
            gate.wait(60)
        return images.mean((1, 2, 3))

    with serving(stuck, seconds=0.5) as (port, queue):
        status, answer, _ = ask(port, picture(text="stuck"))
        assert (status, answer["error"]) == (504, "no scores within 0.5 s")
        waiting = threading.Thread(target=ask, args=(port, picture()))
        waiting.start()
        while not queue.waiting:
            time.sleep(0.005)
        status, answer, _ = ask(port)
        assert (status, answer["waiting"]) == (503, 1)
        assert "a request has been scored for 1 s, longer than the 0.5 s that it may take" in answer["error"]
        waiting.join()
        assert queue.waiting == 0  # given up, and its images with it
        gate.set()
        assert ask(port, picture(0.25))[1]["scores"] == [0.25]
        assert ask(port)[:2] == (200, ABOUT | {"waiting": 0})


def test_requests_that_hold_too_much_together_are_asked_to_come_again():
    begun, gate, images = threading.Event(), threading.Event(), torch.zeros(1, 3, 100, 100)

    def slow(images, prompts):
        begun.set()
        gate.wait(60)
        return images.mean((1, 2, 3))

    body = pack(images, [Prompt("a")], "float32")
    with serving(slow, memory=400_000) as (port, _):
        first = threading.Thread(target=ask, args=(port, body))
        first.start()
        begun.wait()
        status, answer, headers = ask(port, body)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert answer["error"] == "other requests take up the server's memory; ask again"
        assert ask(port)[0] == 200
        gate.set()
        first.join()
        assert ask(port, body)[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [(tensors(dtype="F8_E5M2"), SAFE, 400), (as_json([png(60, 60)] * 2, ["a"] * 2), JSON, 413)],
    ids=["float8", "pixels"],
)
def test_a_refused_request_has_its_status(body, kind, status):
    with serving(lambda images, prompts: images.mean((1, 2, 3)), pixels=5000) as (port, _):
        assert ask(port, body, kind)[0] == status
        assert ask(port, picture())[0] == 200
