"""Fuzz the reward server: broken requests of every kind, after which a good request must be scored rightly.

The server runs in a thread of this process, with small limits. Its reward misbehaves in the way that a prompt names.
"""

import base64
import contextlib
import io
import json
import logging
import random
import re
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from harness import Tally, cases
from PIL import Image
from torch import Tensor

from grpaint.core import Prompt
from grpaint.learn.table import score_images
from grpaint.rewards.elsewhere.limits import Limits
from grpaint.rewards.elsewhere.server import RewardServer
from grpaint.rewards.elsewhere.wire import JSON_TYPE, SAFETENSORS_TYPE, pack

TOKEN = "a token of the fuzzer's"
LIMITS = Limits(bytes=1 << 20, seconds=1.0, batch=4, connections=16, pixels=1 << 16, memory=1 << 24)
LATE_S = 30.0  # after that a request hangs, even on a busy machine
AT_ONCE = 12
LEFT = b"the client left"
NO_HTTP = ("noise", "other_head", "turned_head", "wrong_length")  # may end without an answer
VALUES: list[Any] = [None, True, -1, 0, 2**70, 0.5, 1e308, "", "a", "\ud800", "x" * 100_000, [], {}, [1], {"a": 1}]
RAW_VALUES = ["NaN", "1e999", "9" * 5000, "[" * 5000, '{"a":' * 200, '"\\ud800"', "[" + "0," * 300_000 + "0]", "'a'"]
MISBEHAVIOUR: dict[str, Callable[[], Any]] = {
    "exit": lambda: sys.exit(0),
    "exit 3": lambda: sys.exit(3),
    "interrupt": lambda: _throw(KeyboardInterrupt()),
    "generator": lambda: _throw(GeneratorExit()),
    "memory": lambda: _throw(MemoryError()),
    "cuda": lambda: _throw(RuntimeError("CUDA out of memory.\n\x1b[31mTried to allocate 9 GiB")),
    "pipe": lambda: _throw(BrokenPipeError(32, "Broken pipe")),
    "deep": lambda: MISBEHAVIOUR["deep"](),
    "nan": lambda: float("nan"),
    "text": lambda: "high",
    "late": lambda: time.sleep(1.5 * LIMITS.seconds),
}


def _throw(error: BaseException) -> None:
    raise error


def reward(images: Tensor, prompts: Sequence[Prompt]) -> Any:
    """The mean of each image, or what the first prompt asks for."""
    for prompt in prompts:
        if prompt.text in MISBEHAVIOUR:
            return [MISBEHAVIOUR[prompt.text]()] * len(images)
    return images.mean((1, 2, 3))


def _head(draw: random.Random, length: int, kind: str) -> bytes:
    """The head of a request, mostly right."""
    lines = ["POST /score HTTP/1.1", "Host: a", f"Authorization: Bearer {TOKEN}", f"Content-Type: {kind}"]
    lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _png(width: int, height: int, *, whole: bool = True) -> bytes:
    """A PNG of that size, ``whole`` or by its header alone."""
    if whole:
        file = io.BytesIO()
        Image.new("L", (width, height), 128).save(file, "PNG")
        return file.getvalue()
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    )


def _tensors(draw: random.Random, text: str = "a") -> bytes:
    images = torch.rand(draw.randrange(1, 4), 3, 4, 4)
    reference = torch.rand(3, 4, 4) if draw.random() < 0.3 else None
    return pack(images, [Prompt(text, {"n": 1}, reference)] * len(images), draw.choice(["float32", "uint8"]))


def _json(draw: random.Random, text: str = "a") -> bytes:
    count = draw.randrange(1, 4)
    picture = base64.b64encode(_png(4, 4)).decode()
    prompts = [draw.choice([text, {"text": text, "metadata": {"n": [1]}, "reference": picture}]) for _ in range(count)]
    return json.dumps({"images": [picture] * count, "prompts": prompts}).encode()


def _body(draw: random.Random, text: str = "a") -> tuple[bytes, str]:
    return draw.choice([(_tensors(draw, text), SAFETENSORS_TYPE), (_json(draw, text), JSON_TYPE)])


Attack = Callable[[random.Random], bytes]
ATTACKS: dict[str, Attack] = {}


def attack(make: Attack) -> Attack:
    """Register a maker of requests."""
    ATTACKS[make.__name__] = make
    return make


@attack
def misbehaviour(draw: random.Random) -> bytes:
    body, kind = _body(draw, draw.choice(list(MISBEHAVIOUR)))
    return _head(draw, len(body), kind) + body


@attack
def turned_bytes(draw: random.Random) -> bytes:
    body, kind = _body(draw)
    changed = bytearray(body)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(draw.choice([16, len(changed)]))] = draw.randrange(256)
    return _head(draw, len(changed), kind) + bytes(changed)


@attack
def turned_head(draw: random.Random) -> bytes:
    body, kind = _body(draw)
    head = bytearray(_head(draw, len(body), kind))
    for _ in range(draw.randrange(1, 4)):
        head[draw.randrange(len(head))] = draw.randrange(256)
    return bytes(head) + body


@attack
def other_head(draw: random.Random) -> bytes:
    body, kind = _body(draw)
    method = draw.choice(["GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "", "x" * 3000, "\u00ff"])
    path = draw.choice(
        ["/score", "/health", "/", "//", "/score?" + "a" * 9000, "http://b/score", "*", "/%00", "/\udcff"]
    )
    version = draw.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.1 x", "", "FTP/1.1"])
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind, "Content-Length": str(len(body)), "Host": "a"}
    for _ in range(draw.randrange(3)):
        name = draw.choice([*headers, "Expect", "Transfer-Encoding", "Upgrade", "X-Odd", "Cookie"])
        odd = [
            "",
            "-1",
            "abc",
            "9" * 25,
            "1, 2",
            "100-continue",
            "chunked",
            "h2c",
            "\udcff\udcfe",
            "x" * 70_000,
            "a\0b",
        ]
        headers[name] = draw.choice(odd)
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "surrogateescape") + body


@attack
def wrong_length(draw: random.Random) -> bytes:
    body, kind = _body(draw)
    return _head(draw, max(0, len(body) + draw.choice([-len(body), -9, -1, 1, 1 << 19])), kind) + body


@attack
def other_tensors(draw: random.Random) -> bytes:
    body = _tensors(draw)
    (size,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + size])
    entry = draw.choice([header, header["images"], header["__metadata__"], header])
    part = draw.choice([*entry, "reference.0", "odd"])
    shapes = [[1, 3, -4, 4], [2**40, 3, 2**40, 4], [0, 3, 4, 4], [1, 3, 4], [1.0, 3, 4, 4], [1, 1, 4, 4], []]
    entry[part] = draw.choice([*VALUES, *shapes, [0, 2**63], [-8, 8], "F8_E4M3", "F8_E5M2", "I64", "C64", "BOOL"])
    text = json.dumps(header)
    if draw.random() < 0.3:
        text = text[:-1] + draw.choice([', "images": {}}', ', "odd": ' + draw.choice(RAW_VALUES) + "}", "", "}}"])
    raw = text.encode()
    length = draw.choice([len(raw)] * 5 + [0, 1, 2**63, 2**64 - 1, len(raw) + 1])
    changed = struct.pack("<Q", length) + raw + body[8 + size :]
    return _head(draw, len(changed), SAFETENSORS_TYPE) + changed


@attack
def other_prompts(draw: random.Random) -> bytes:
    body = _tensors(draw)
    (size,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + size])
    prompts = json.loads(header["__metadata__"]["prompts"])
    prompts[0] = draw.choice(
        [*VALUES, {"text": draw.choice(VALUES), draw.choice(["metadata", "reference"]): draw.choice(VALUES)}]
    )
    text = json.dumps(draw.choice([prompts, prompts, prompts[1:], {"a": prompts}]))
    header["__metadata__"]["prompts"] = draw.choice(
        [text, text, draw.choice(RAW_VALUES), f"[{draw.choice(RAW_VALUES)}]"]
    )
    raw = json.dumps(header).encode()
    changed = struct.pack("<Q", len(raw)) + raw + body[8 + size :]
    return _head(draw, len(changed), SAFETENSORS_TYPE) + changed


@attack
def other_json(draw: random.Random) -> bytes:
    request = json.loads(_json(draw))
    part = draw.choice([request, request["images"], request["prompts"]])
    pictures = [
        _png(300, 300),
        _png(60_000, 60_000, whole=False),
        _png(8000, 8000, whole=False),
        _png(4, 5),
        _png(4, 4)[:-9],
    ]
    picture = base64.b64encode(draw.choice([*pictures, b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0", b""])).decode()
    key = draw.choice(list(part)) if isinstance(part, dict) else draw.randrange(len(part))
    part[key] = draw.choice([*VALUES, picture, [picture] * 300])
    body = json.dumps(request).encode()
    if draw.random() < 0.4:
        place = draw.choice([at for at, byte in enumerate(body) if byte in b'"[{:,'])
        body = body[:place] + draw.choice(RAW_VALUES).encode() + body[place + draw.randrange(2) :]
    body = draw.choice([body, body, body, body.decode().encode("utf-16"), b"\xef\xbb\xbf" + body])
    return _head(draw, len(body), JSON_TYPE) + body


@attack
def noise(draw: random.Random) -> bytes:
    return draw.choice(
        [draw.randbytes(draw.randrange(1, 400)), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\r\n" * 50, b""]
    )


def send(port: int, raw: bytes, draw: random.Random) -> bytes:
    """Send a request, in one of several ways, and return what came back; LEFT where the client did not wait for it."""
    way = draw.choice(["whole"] * 8 + ["pieces", "drip", "leave", "reset", "half"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LATE_S) as connection,
        contextlib.suppress(ConnectionError),
    ):
        if way in ("leave", "reset"):
            connection.sendall(raw[: draw.randrange(len(raw) + 1)])
            if way == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return LEFT
        step = {"pieces": 1000, "drip": 1 + len(raw) // 5}.get(way, len(raw) + 1)
        for place in range(0, len(raw), step):
            connection.sendall(raw[place : place + step])
            time.sleep(0.02 if way == "drip" else 0)
        if way == "half":
            connection.shutdown(socket.SHUT_WR)
        answer = _read(connection)
        return LEFT if way == "half" and not answer else answer
    return b""


def _read(connection: socket.socket) -> bytes:
    """An answer, or what comes of it until the connection is closed.

    Raises:
        TimeoutError: nothing more for a long time.
    """
    answer = b""
    with contextlib.suppress(ConnectionError):
        while not _whole(answer) and (more := connection.recv(1 << 16)):
            answer += more
    return answer


def _whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    return bool(end and length) and len(body) >= int(length[1])


def check_good(port: int, draw: random.Random) -> str:
    """Send a good request; return what is wrong with its answer, or ""."""
    level, count = draw.randrange(256), draw.randrange(1, 4)
    images = torch.full((count, 3, 4, 4), level / 255)
    body = pack(images, [Prompt("good")] * count, "uint8")
    end = time.monotonic() + LATE_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=LATE_S) as connection:
                connection.sendall(_head(draw, len(body), SAFETENSORS_TYPE) + body)
                answer = _read(connection)
        except OSError as error:
            answer = f"{type(error).__name__}: {error}".encode()
        head, _, content = answer.partition(b"\r\n\r\n")
        busy = any(f" {status} ".encode() in head[:20] for status in (503, 504)) or not head
        if not busy or time.monotonic() > end:
            break
        time.sleep(0.1)
    with contextlib.suppress(ValueError, KeyError):
        if all(abs(score - level / 255) < 1e-5 for score in json.loads(content)["scores"]) and b" 200 " in head[:20]:
            return ""
    return f"a good request was answered {answer[:300]!r}"


class _Errors(logging.Handler):
    """Keeps what libraries log as errors, tracebacks among it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.exc_info and record.exc_info[1]!r}")


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, list[str]]]:
    """The port of the server, and a list of the errors that it did not expect."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    hook, threading.excepthook = (
        threading.excepthook,
        lambda caught: errors.lines.append(f"in a thread: {caught.exc_value!r}"),
    )
    about = {"name": "mean", "version": "0", "identity": "0"}
    server = RewardServer(("127.0.0.1", 0), partial(score_images, "mean", reward), about, TOKEN, LIMITS, lambda _: None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, errors.lines
    finally:
        server.stop()
        thread.join(LATE_S)
        if thread.is_alive():
            errors.lines.append("the server did not stop")
        threading.excepthook = hook
        logging.getLogger().removeHandler(errors)


def _judge(kind: str, answer: bytes) -> tuple[str, str]:
    """The outcome of an answer: it has a status, and a reason in JSON where it is no success."""
    head, _, content = answer.partition(b"\r\n\r\n")
    if answer == LEFT or (not answer and kind in NO_HTTP):
        return "refused", ""
    status = head[9:12].decode("ascii", "replace")
    if not status.isdigit():
        return "wrong", repr(answer[:200])
    if status == "200":
        return "done", ""
    reason: Any = None
    with contextlib.suppress(ValueError):
        reason = json.loads(content)
    bare = status in ("400", "503", "404", "401", "405", "411", "413", "408") and not isinstance(reason, dict)
    bare = bare and len(content) < 100  # of the layer below, which knows no reasons
    good = isinstance(reason, dict) and isinstance(reason.get("error"), str) and "\n" not in reason["error"]
    return ("refused" if good or bare else "wrong"), repr(answer[:300])


def run(seed: int, minutes: float, most: int) -> Tally:
    """Send requests, most of them a dozen at once.

    Outcomes: "done", "refused" (or the client left); else "hang", "traceback", or "wrong" (no answer, an answer
    without a reason, or a good request that is not scored rightly afterwards). ``most`` counts all but the good ones.
    """
    tally = Tally()
    with serving() as (port, errors), ThreadPoolExecutor(AT_ONCE) as pool:
        for number, draw in cases(seed, minutes, most):
            if sum(tally.tried.values()) - tally.tried["good requests"] >= most:
                break
            kinds = [draw.choice(list(ATTACKS)) for _ in range(AT_ONCE if number % 4 == 3 else 1)]
            requests = [(kind, ATTACKS[kind](draw), random.Random(draw.random())) for kind in kinds]
            answers = [pool.submit(send, port, raw, way) for _, raw, way in requests]
            for (kind, raw, _), answer in zip(requests, answers, strict=True):
                try:
                    outcome, text = _judge(kind, answer.result())
                except TimeoutError:
                    outcome, text = "hang", "no answer"
                tally.add(kind, outcome, f"{number}: {text} to {raw[:300]!r}")
            wrong = check_good(port, draw)
            tally.add("good requests", "wrong" if wrong else "done", f"{number}, after {', '.join(kinds)}: {wrong}")
            for line in errors:
                tally.add("errors", "traceback", f"{number}, after {', '.join(kinds)}: {line}")
            errors.clear()
    for line in errors:
        tally.add("errors", "traceback", line)
    return tally
