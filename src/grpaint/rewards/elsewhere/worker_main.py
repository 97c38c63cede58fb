"""The other end of a worker reward: runs under the interpreter that a recipe names, where grpaint need not be.

The standard library alone, from Python 3.8 on; Pillow or numpy only where images are wanted as theirs. Frames of eight
bytes of length and a body go over standard input (safetensors, as ``rewards/elsewhere/wire.py`` writes it, pixels
uint8) and standard output (JSON). What the reward itself prints goes to standard error. When standard
input closes, it ends.

    python worker_main.py TARGET batch|each pil|numpy|raw

TARGET is file.py:function or module:function. ``batch``: function(images, prompts, metadata) gives one value an image;
``each``: function(image) gives the value of one.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules must not pass for others of the same name

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
    """The function that ``target`` names, and a digest of its file."""
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        sys.path.insert(0, str(Path(place).resolve().parent))
        spec = importlib.util.spec_from_file_location("reward_" + Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise ImportError("no file " + place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    source = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else ""
    return getattr(module, name), digest


def frames(stream: io.FileIO, into: queue.Queue[bytes]) -> None:
    """Put every frame of ``stream`` into a queue; end the process where the stream ends."""
    while True:
        (length,) = struct.unpack("<Q", whole(stream, 8))
        into.put(whole(stream, length))


def whole(stream: io.FileIO, length: int) -> bytes:
    """So many bytes; where there are fewer, whoever started this is gone, maybe in the midst of a question."""
    body = bytearray()
    while len(body) < length:
        chunk = stream.read(min(length - len(body), 1 << 20))
        if not chunk:
            os._exit(0)
        body += chunk
    return bytes(body)


def write(stream: BinaryIO, said: dict[str, Any]) -> None:
    """One frame."""
    body = json.dumps(said, allow_nan=False).encode()
    stream.write(struct.pack("<Q", len(body)) + body)
    stream.flush()


def unpack(body: bytes, kind: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Images and prompts of a frame."""
    (size,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + size])
    prompts = json.loads(header["__metadata__"]["prompts"])
    about = header["images"]
    count, _, height, width = about["shape"]
    first, last = about["data_offsets"]
    planes = memoryview(body)[8 + size + first : 8 + size + last]
    area = height * width
    images = []
    for number in range(count):
        red, green, blue = (bytes(planes[(3 * number + c) * area : (3 * number + c + 1) * area]) for c in range(3))
        pixels = bytearray(3 * area)
        pixels[0::3], pixels[1::3], pixels[2::3] = red, green, blue
        images.append(picture(bytes(pixels), width, height, kind))
    return images, prompts


def picture(pixels: bytes, width: int, height: int, kind: str) -> Any:
    """An RGB image as ``kind`` says; raw: (width, height, bytes)."""
    if kind == "pil":
        from PIL import Image

        return Image.frombytes("RGB", (width, height), pixels)
    if kind == "numpy":
        import numpy

        return numpy.frombuffer(pixels, dtype=numpy.uint8).reshape(height, width, 3)
    return width, height, pixels


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: tensors, arrays and numpy numbers as Python's."""
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def answer(function: Callable[..., Any], how: str, kind: str, body: bytes) -> list[Any]:
    """What the reward says about a frame."""
    images, prompts = unpack(body, kind)
    if how == "each":
        return [plain(function(image)) for image in images]
    return plain(function(images, [p["text"] for p in prompts], [p["metadata"] for p in prompts]))


def main() -> None:
    """Answer frames until standard input closes."""
    target, how, kind = sys.argv[1:]
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    waiting: queue.Queue[bytes] = queue.Queue()
    unbuffered = io.FileIO(0, closefd=False)  # a buffer's lock, held at the end, would abort Python
    threading.Thread(target=frames, args=(unbuffered, waiting), daemon=True).start()
    function, digest = load(target)
    write(out, {"ready": platform.python_version(), "digest": digest})
    while True:
        body = waiting.get()
        try:
            said: dict[str, Any] = {"values": answer(function, how, kind, body)}
            json.dumps(said, allow_nan=False)
        except Exception as error:  # noqa: BLE001 - reason: the asker is told
            traceback.print_exc()
            said = {"error": type(error).__name__ + ": " + str(error)}
        write(out, said)


if __name__ == "__main__":
    main()
