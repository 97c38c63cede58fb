"""The program of a worker reward; it runs under the interpreter that a recipe names, which need not have grpaint.

It uses the standard library alone, from Python 3.8 on, and imports Pillow or numpy only if images are to have that
form. Messages are frames, a length of eight bytes and a body: batches arrive on standard input (safetensors as
``rewards/elsewhere/wire.py`` writes it, pixels uint8), answers leave on standard output (JSON). The reward's own prints
go to standard error. The program ends when standard input closes.

    python worker_main.py TARGET batch|each pil|numpy|raw

TARGET is file.py:function or module:function. ``batch``: function(images, prompts, metadata) returns one value an
image; ``each``: function(image) returns the value of one image.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its modules must not hide others of the same name

import hashlib
import importlib
import importlib.util
import io
import json
import os
import platform
import queue
import struct
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO, Callable  # noqa: UP035 - reason: Python 3.8


def load(target: str) -> tuple[Callable[..., Any], str]:
    """Import the function that ``target`` names; returns it and a digest of its file."""
    source, _, name = target.rpartition(":")
    if source.endswith(".py"):
        sys.path.insert(0, str(Path(source).resolve().parent))
        spec = importlib.util.spec_from_file_location("reward_" + Path(source).stem, source)
        if spec is None or spec.loader is None or not Path(source).is_file():
            raise ImportError("no file " + source)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""
    return getattr(module, name), digest


def read_frames(stream: io.FileIO, bodies: queue.Queue[bytes]) -> None:
    """Put the body of every frame of ``stream`` into a queue; end the process at the end of the stream."""
    while True:
        (length,) = struct.unpack("<Q", read_exactly(stream, 8))
        bodies.put(read_exactly(stream, length))


def read_exactly(stream: io.FileIO, length: int) -> bytes:
    """Read ``length`` bytes; end the process if the stream ends, because the process that started it is gone."""
    body = bytearray()
    while len(body) < length:
        chunk = stream.read(min(length - len(body), 1 << 20))
        if not chunk:
            os._exit(0)
        body += chunk
    return bytes(body)


def write_frame(stream: BinaryIO, answer: dict[str, Any]) -> None:
    """Write an answer as one frame of JSON."""
    body = json.dumps(answer, allow_nan=False).encode()
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def unpack(body: bytes, form: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """The images, in the form that the function takes, and the prompts of a frame."""
    (size,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + size])
    prompts = json.loads(header["__metadata__"]["prompts"])
    entry = header["images"]
    count, _, height, width = entry["shape"]
    first, last = entry["data_offsets"]
    planes = memoryview(body)[8 + size + first : 8 + size + last]
    area = height * width
    images = []
    for number in range(count):
        red, green, blue = (bytes(planes[(3 * number + c) * area : (3 * number + c + 1) * area]) for c in range(3))
        pixels = bytearray(3 * area)
        pixels[0::3], pixels[1::3], pixels[2::3] = red, green, blue
        images.append(make_image(bytes(pixels), width, height, form))
    return images, prompts


def make_image(pixels: bytes, width: int, height: int, form: str) -> Any:
    """An RGB image as a PIL image, a numpy array, or the tuple (width, height, bytes)."""
    if form == "pil":
        from PIL import Image

        return Image.frombytes("RGB", (width, height), pixels)
    if form == "numpy":
        import numpy

        return numpy.frombuffer(pixels, dtype=numpy.uint8).reshape(height, width, 3)
    return width, height, pixels


def to_plain(value: Any) -> Any:
    """Convert tensors, arrays and numpy numbers, also in lists, to Python's numbers and lists, for JSON."""
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def compute(function: Callable[..., Any], call_mode: str, form: str, body: bytes) -> list[Any]:
    """Call the function on the images and prompts of a frame."""
    images, prompts = unpack(body, form)
    if call_mode == "each":
        return [to_plain(function(image)) for image in images]
    return to_plain(function(images, [p["text"] for p in prompts], [p["metadata"] for p in prompts]))


def main() -> None:
    """Answer frames until standard input closes."""
    target, call_mode, form = sys.argv[1:]
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    bodies: queue.Queue[bytes] = queue.Queue()
    unbuffered = io.FileIO(0, closefd=False)  # the lock of a buffer, if held at exit, would abort Python
    threading.Thread(target=read_frames, args=(unbuffered, bodies), daemon=True).start()
    function, digest = load(target)
    write_frame(out, {"ready": platform.python_version(), "digest": digest})
    while True:
        body = bodies.get()
        try:
            answer: dict[str, Any] = {"values": compute(function, call_mode, form, body)}
            json.dumps(answer, allow_nan=False)
        except BaseException as error:  # noqa: BLE001 - reason: sys.exit too is sent as the answer
            traceback.print_exc()
            answer = {"error": type(error).__name__ + ": " + str(error)}
        write_frame(out, answer)


if __name__ == "__main__":
    main()
