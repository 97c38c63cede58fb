"""Fuzz the HTTP clients of rewards: a server whose answers are broken in random ways, reproducible by a seed.

``remote`` rewards (their health and their scores) and ``vlm-judge`` ask it. Every question must end within its time,
in a RewardError or in the scores that the answer holds.
"""

import contextlib
import json
import math
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Tally, cases

from grpaint.core import Prompt, RewardError
from grpaint.rewards.elsewhere.remote import Remote
from grpaint.rewards.readout import Readout
from grpaint.rewards.vlm import VlmJudge
from grpaint.rewards.vlm_score import VlmScore

PATIENCE_S = 0.5
LATE_S = 20.0  # after that a question hangs, even on a busy machine
IDENTITY = "0123456789abcdef"
HEALTH = {"name": "mean", "version": "1", "identity": IDENTITY}
VALUES: list[Any] = [None, True, "0.5", "", [], {}, [0.5], -0.0, 1e308, -1e39, 10**300, "\ud800", "\x1b[31m", 0.1]
RAW_VALUES = ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 5000, "{" * 500, '"\\ud800"', "01", "'a'", "0x1"]
LENGTHS = ["-1", "0", "1", "10", "99999", "1e3", "abc", "", "9" * 30, "+5", "5, 5", "\u00b2"]
CHUNKS = ["-5", "-0", "zz", "", "ffffffffffffffff", "1" * 40, "0x5", "5;a=b", " 5", "5 ", "\x00"]
STATUSES = ["100", "101", "199", "201", "204", "301", "302", "304", "307", "308", "400", "401", "404", "408", "413"]
STATUSES += ["418", "425", "429", "500", "502", "503", "504", "599", "600", "999", "0", "-200", "2000", "abc", ""]
STRANGERS = [
    b"",
    b"\r\n\r\n",
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/0.9 200\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x15\x03\x03\x00\x02\x02\x28",
    b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"<html>502 Bad Gateway</html>",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
]


@dataclass
class Reply:
    """The bytes of an answer, and how they are sent: ``pause_s`` after each ``step`` bytes, and the ``end``."""

    raw: bytes
    body: bytes = b""
    step: int = 1 << 20
    pause_s: float = 0.0
    end: str = "close"  # or reset, or hold: say nothing more
    early: bool = False  # before the question is read


@dataclass
class Liar:
    """A server that gives every connection the ``reply`` of now; ``connections`` counts them."""

    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=64))
    reply: Callable[[bytes], Reply] = lambda _: Reply(b"")
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Answer until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._answer, args=(connection, self.reply), daemon=True).start()

    def _answer(self, connection: socket.socket, reply: Callable[[bytes], Reply]) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(4 * PATIENCE_S)
            now = reply(b"")
            if not now.early:
                now = reply(_read_question(connection))
            for place in range(0, len(now.raw), now.step):
                connection.sendall(now.raw[place : place + now.step])
                time.sleep(now.pause_s)
            if now.end == "hold":
                connection.recv(1)  # until the client goes
            if now.end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_question(connection: socket.socket) -> bytes:
    """The body of a question."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(1 << 16)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length and (more := connection.recv(1 << 16)):
        body += more
    return body


def _http(body: bytes, status: str = "200 OK", headers: str | None = None) -> bytes:
    headers = f"Content-Length: {len(body)}\r\n" if headers is None else headers
    return f"HTTP/1.1 {status}\r\n{headers}\r\n".encode("utf-8", "surrogateescape") + body


def broken(draw: random.Random, right: dict[str, Any], key: str, url: str) -> tuple[str, Reply]:
    """A broken answer in the place of ``right``, whose values are under ``key``, and the name of its fault."""
    body = json.dumps(right).encode()
    name = draw.choice(list(FAULTS))
    return name, FAULTS[name](draw, right, body, key, url)


Maker = Callable[[random.Random, dict[str, Any], bytes, str, str], Reply]
FAULTS: dict[str, Maker] = {}


def fault(make: Maker) -> Maker:
    """Register a maker of broken answers."""
    FAULTS[make.__name__] = make
    return make


@fault
def cut_short(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    raw = _http(body)
    return Reply(raw[: draw.randrange(len(raw))], end=draw.choice(["close", "close", "reset", "hold"]))


@fault
def wrong_length(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    lengths = draw.sample(LENGTHS, draw.choice([1, 1, 2]))
    return Reply(_http(body, headers="".join(f"Content-Length: {length}\r\n" for length in lengths)), body)


@fault
def wrong_chunks(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    size = draw.choice([*CHUNKS, f"{len(body):x}"])
    end = draw.choice([b"\r\n0\r\n\r\n", b"\r\n", b"", b"0\r\n\r\n", b"\r\n-1\r\n\r\n"])
    headers = "Transfer-Encoding: " + draw.choice(["chunked", "CHUNKED", "gzip, chunked", "chunked, chunked", "x"])
    headers += draw.choice(["\r\n", f"\r\nContent-Length: {len(body)}\r\n"])
    return Reply(_http(f"{size}\r\n".encode() + body + end, headers=headers), body)


@fault
def odd_status(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    body = draw.choice(
        [body, b'{"error": "\\ud800 \\u001b[31m"}', b'{"error": {"message": 5}}', b"[1]", b"", b"[" * 9999]
    )
    where = draw.choice([url, f"{url}/health", "http://127.0.0.1:1/", "//", "http://a b/", "file:///etc/passwd"])
    headers = f"Content-Length: {len(body)}\r\nLocation: {where}\r\n"
    return Reply(_http(body, draw.choice(STATUSES) + draw.choice([" Odd", "", " " + "x" * 500]), headers))


@fault
def other_values(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    wrong = json.loads(body)
    part = draw.choice([key, *wrong])
    match draw.randrange(5):
        case 0:
            wrong.pop(part)
        case 1 if isinstance(wrong[part], list):
            wrong[part] = (wrong[part] * 2)[: draw.randrange(2 * len(wrong[part]))]
        case 2 if isinstance(wrong[part], list):
            wrong[part][draw.randrange(len(wrong[part]))] = draw.choice(VALUES)
        case _:
            wrong[part] = draw.choice([*VALUES, "another"])
    changed = json.dumps(draw.choice([wrong, wrong, wrong, [wrong], 5, None])).encode()
    return Reply(_http(changed), changed)


@fault
def no_json(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    places = [place for place, byte in enumerate(body) if byte in b'0123456789"[{']
    place = draw.choice(places)
    changed = body[:place] + draw.choice(RAW_VALUES).encode() + body[place + draw.randrange(2) :]
    changed = draw.choice(
        [changed, changed, changed.decode().encode("utf-16"), b"\xef\xbb\xbf" + changed, b"\xff" + body]
    )
    return Reply(_http(changed), changed)


@fault
def turned_bytes(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    changed = bytearray(body)
    for _ in range(draw.randrange(1, 5)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return Reply(_http(bytes(changed)), bytes(changed))


@fault
def turned_head(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    raw = bytearray(_http(body))
    for _ in range(draw.randrange(1, 4)):
        raw[draw.randrange(len(raw) - len(body))] = draw.randrange(256)
    return Reply(bytes(raw), body)


@fault
def large_head(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    headers = draw.choice(
        [
            "X: " + "y" * draw.choice([10_000, 200_000, 4_000_000]) + "\r\n",
            "".join(f"X-{n}: y\r\n" for n in range(draw.choice([50, 5_000]))),
            "X: a\x00b\r\n",
            "X : y\r\n",
            ": y\r\n",
            "X\r\n",
            " folded\r\n",
            "Content-Encoding: gzip\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\n",
            "\udcff: \udcfe\r\n",
        ]
    )
    return Reply(_http(body, headers=headers + draw.choice([f"Content-Length: {len(body)}\r\n", ""])), body)


@fault
def large_body(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    size = draw.choice([1 << 17, 1 << 21, 1 << 24])
    headers = draw.choice([f"Content-Length: {size}\r\n", "", "Content-Length: 9999999999999\r\n"])
    return Reply(_http(b" " * size, headers=headers))


@fault
def slow(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    return Reply(_http(body), body, step=draw.choice([1, 7, 40]), pause_s=draw.choice([0.002, 0.05]))


@fault
def stranger(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    noise = draw.randbytes(draw.randrange(1, 300))
    return Reply(draw.choice([*STRANGERS, noise, noise]), end=draw.choice(["close", "reset", "hold"]))


@fault
def hasty(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    return Reply(draw.choice([b"", _http(body)]), body, end=draw.choice(["close", "reset"]), early=True)


@fault
def more_than_one(draw: random.Random, right: dict[str, Any], body: bytes, key: str, url: str) -> Reply:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    before = draw.choice([b"", interim, interim * 2000])
    return Reply(before + _http(body) + draw.choice([b"", _http(b"{}"), b"\x00" * 50]), body)


class _Question:
    """One way of asking the server: ``right`` is the answer in order, ``ask`` asks, ``values`` reads an answer."""

    def __init__(self, name: str, images: int) -> None:
        self.name, self.images = name, images
        self.scores = [n / 8 for n in range(images)]
        self.right: dict[str, Any] = {"scores": self.scores, "identity": IDENTITY}
        self.key = "scores"
        if name == "health":
            self.right, self.key = HEALTH, "identity"
        if name in ("judge", "readout"):
            tops = {"content": [{"top_logprobs": [{"token": "5", "logprob": 0.0}]}]}
            choice = {"message": {"content": "5"}, "logprobs": tops}
            self.right, self.key = {"choices": [choice], "usage": {"prompt_tokens": 3}}, "choices"

    def ask(self, url: str) -> list[float]:
        """Ask the server; the scores, or none where only its health is asked for."""
        images, prompts = torch.zeros(self.images, 3, 4, 4), [Prompt("a")] * self.images
        if self.name == "judge":
            judge = VlmJudge(url, "m", timeout_s=PATIENCE_S, retries=0, backoff_s=0, concurrency=2)
            return judge(images, prompts).tolist()
        if self.name == "readout":
            readout = Readout(question="{prompt}", answers={"5": 5.0})
            scorer = VlmScore(url, "m", timeout_s=PATIENCE_S, retries=0, backoff_s=0, concurrency=2, readout=readout)
            return scorer(images, prompts).tolist()
        remote = Remote((url,), timeout_s=PATIENCE_S, retries=0, backoff_s=0)
        if self.name == "health":
            remote.start()
            return []
        remote._identity = IDENTITY  # as after a start that went well
        return remote(images, prompts).tolist()

    def values(self, body: bytes) -> list[float] | None:
        """The scores that an answer of this body holds; None if it holds none."""
        if self.name == "health":
            return []
        with contextlib.suppress(
            ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError, OverflowError
        ):
            answer = json.loads(body)
            if self.name == "judge":
                return [float(answer["choices"][0]["message"]["content"])] * self.images
            if self.name == "readout":
                tops = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
                likely = sum(math.exp(top["logprob"]) for top in tops if top["token"].strip() == "5")
                return torch.tensor([5 * likely] * self.images).tolist()
            return torch.tensor([float(score) for score in answer["scores"]]).tolist()  # rounded to fp32
        return None


@contextlib.contextmanager
def lying() -> Iterator[Liar]:
    """A server of broken answers in a thread."""
    liar = Liar()
    threading.Thread(target=liar.serve, daemon=True).start()
    try:
        yield liar
    finally:
        liar.listener.shutdown(socket.SHUT_RDWR)
        liar.listener.close()


def run(seed: int, minutes: float, most: int) -> Tally:
    """Ask a server for broken answers; after each ten a right one must be read.

    Outcomes: "done" (the scores of the answer), "refused" (a RewardError); else "hang", "traceback", or "wrong".
    """
    tally = Tally()
    with lying() as liar:
        for number, draw in cases(seed, minutes, most):
            question = _Question(draw.choice(["health", "score", "judge", "readout"]), draw.randrange(1, 5))
            name, reply = broken(draw, question.right, question.key, liar.url)
            outcome, text = _try(liar, question, reply)
            tally.add(f"{question.name} {name}", outcome, f"{number}: {reply.raw[:80]!r}: {text}")
            if number % 10 == 9:
                body = json.dumps(question.right).encode()
                outcome, text = _try(liar, question, Reply(_http(body), body))
                tally.add("right answers", "wrong" if outcome == "refused" else outcome, f"{number}: {text}")
    return tally


def _try(liar: Liar, question: _Question, reply: Reply) -> tuple[str, str]:
    """Ask once; the outcome and what there is to say."""
    before, ended = liar.connections, threading.Event()
    results: list[Any] = []

    def ask() -> None:
        try:
            results.append(question.ask(liar.url))
        except BaseException as error:
            results.append(error)
        ended.set()

    liar.reply = lambda _: reply
    threading.Thread(target=ask, daemon=True).start()
    if not ended.wait(LATE_S):
        return "hang", f"no end within {LATE_S:g} s"
    result = results[0]
    if isinstance(result, RewardError):
        bad = "\n" in str(result) or liar.connections - before > question.images  # a redirect is not followed
        return "wrong" if bad else "refused", str(result)
    if isinstance(result, BaseException):
        return "traceback", f"{type(result).__name__}: {result}"
    return "done" if result == question.values(reply.body) else "wrong", str(result)
