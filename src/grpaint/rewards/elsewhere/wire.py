"""The format of reward requests and answers: safetensors, or JSON with PNGs; never pickle. Answers are JSON.

In a safetensors body ``images`` is ``[b, 3, h, w]``, uint8 or float in [0, 1], and each ``reference.N`` is one image
``[3, h, w]``; the header's metadata contains ``prompts``, a JSON list of ``{"text", "metadata", "reference": N}``.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.images.encoding import eight_bit
from grpaint.images.pictures import BadImage, open_picture, read_picture
from grpaint.rewards.elsewhere.client import Failed
from grpaint.rewards.elsewhere.limits import MOST_HEADER, Limits, Malformed, TooLarge, parse_json

PixelFormat = Literal["float32", "uint8"]
SAFETENSORS_TYPE, JSON_TYPE = "application/x-safetensors", "application/json"
LARGEST = 3e38  # a score must fit into fp32
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DTYPES = ("U8", "F16", "BF16", "F32", "F64")  # of safetensors: what pixels may be
DEFAULT = Limits()


def pack(images: Tensor, prompts: Sequence[Prompt], pixels: PixelFormat) -> bytes:
    """Write images in [0, 1] and their prompts as a safetensors file.

    ``uint8`` rounds to 256 levels. Metadata that JSON cannot hold is left out.
    """
    tensors, entries, numbers = {"images": _pixels(images, pixels)}, list[dict[str, Any]](), dict[int, int]()
    for prompt in prompts:
        entry: dict[str, Any] = {"text": prompt.text, "metadata": _json_metadata(prompt.metadata)}
        if prompt.reference is not None:  # a group shares one reference, which is sent once
            number = numbers.setdefault(id(prompt.reference), len(numbers))
            tensors[f"reference.{number}"] = _pixels(prompt.reference, pixels)
            entry["reference"] = number
        entries.append(entry)
    return save(tensors, {"prompts": json.dumps(entries)})


def _pixels(images: Tensor, pixels: PixelFormat) -> Tensor:
    images = images.detach().cpu().float().contiguous()
    return eight_bit(images) if pixels == "uint8" else images


def _json_metadata(metadata: Any) -> dict[str, Any]:
    out = {}
    for name, value in metadata.items():
        try:
            out[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            continue
    return out


@dataclass(frozen=True)
class Request:
    """A request whose header was checked and whose pixels are still to be decoded; ``pixels`` counts them.

    ``decode`` returns images ``[b, 3, h, w]``, fp32 in [0, 1], and their prompts; it raises Malformed.
    """

    pixels: int
    decode: Callable[[], tuple[Tensor, list[Prompt]]]


def unpack(body: bytes, content_type: str, limits: Limits = DEFAULT) -> tuple[Tensor, list[Prompt]]:
    """Read a body of :func:`pack`, or its equivalent in JSON; images ``[b, 3, h, w]``, fp32 in [0, 1].

    Raises:
        Malformed: if it is neither, or exceeds a limit.
    """
    return read_request(body, content_type, limits).decode()


def read_request(body: bytes, content_type: str, limits: Limits) -> Request:
    """Read all of a body but its pixels.

    Raises:
        Malformed: if it is neither a body of :func:`pack` nor its equivalent in JSON, or exceeds a limit.
    """
    match media_type(content_type):
        case "application/x-safetensors":
            return _from_tensors(body, limits)
        case "application/json":
            return _from_json(body, limits)
    raise Malformed(f"content type {content_type!r:.60}: send {SAFETENSORS_TYPE} or {JSON_TYPE}")


def media_type(content_type: str) -> str:
    """Return the type in a Content-Type header, without parameters and in small letters."""
    return content_type.partition(";")[0].strip().lower()


def _from_tensors(body: bytes, limits: Limits) -> Request:
    length = int.from_bytes(body[:8], "little")
    if not 0 < length <= len(body) - 8:
        raise Malformed("the body is no safetensors file with prompts (its header is longer than it)")
    if length > MOST_HEADER:
        raise TooLarge(f"the header of the body is larger than {MOST_HEADER >> 20} MiB; send smaller batches")
    header = _parse(body[8 : 8 + length], limits, "the body is no safetensors file with prompts")
    try:
        text = header.pop("__metadata__")["prompts"].encode("utf-8", "surrogatepass")
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed("the body is no safetensors file with prompts (no text __metadata__.prompts)") from error
    entries = _parse(text, limits, "__metadata__.prompts", list)
    if "images" not in header:
        raise Malformed('the body has no tensor "images"')
    shapes = {name: _shape(name, tensor) for name, tensor in header.items()}
    pixels = _check_size(sum(math.prod(shape) // 3 for shape in shapes.values()), shapes["images"][0], limits)
    prompts = [_prompt(entry, limits) for entry in _list(entries, shapes["images"][0])]
    names = [None if number is None else f"reference.{number}" for number in map(_reference, entries)]
    for name in names:
        if name is not None and name not in shapes:
            raise Malformed(f"a prompt names {name!r:.60}, and the body has no such tensor")

    def decode() -> tuple[Tensor, list[Prompt]]:
        try:
            tensors = {name: _to_float(name, tensor) for name, tensor in load(body).items()}
        except SafetensorError as error:
            raise Malformed(f"the body is no safetensors file with prompts ({error})") from error
        references = [None if name is None else tensors[name] for name in names]
        return tensors["images"], [Prompt(p.text, p.metadata, r) for p, r in zip(prompts, references, strict=True)]

    return Request(pixels, decode)


def _parse(text: bytes, limits: Limits, what: str, kind: type = dict) -> Any:
    """Parse JSON that must be a dict, or another ``kind``; errors begin with ``what``."""
    try:
        value = parse_json(text, limits)
    except Malformed as error:
        raise type(error)(f"{what}: {error}") from error
    if not isinstance(value, kind):
        raise Malformed(f"{what}: must be a JSON {'object' if kind is dict else 'list'}")
    return value


def _shape(name: str, tensor: Any) -> list[int]:
    """Check a tensor's entry in the header and return its shape: ``[b, 3, h, w]``, for a reference ``[3, h, w]``."""
    if name != "images" and not re.fullmatch(r"reference\.\d{1,6}", name, re.ASCII):
        raise Malformed(f'a tensor {name!r:.60}; there are "images" and "reference.N"')
    entry = tensor if isinstance(tensor, dict) else {}
    shape, kind = entry.get("shape"), entry.get("dtype")
    if kind not in DTYPES:
        raise Malformed(f"{name} has dtype {kind!r:.20}; it must be uint8, or finite floats: {', '.join(DTYPES)}")
    sides = shape if isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape) else []
    if len(sides) != (4 if name == "images" else 3) or sides[-3] != 3:
        raise Malformed(f"{name} has shape {shape!r:.60}; it must be [b, 3, h, w], a reference [3, h, w]")
    return sides


def _check_size(pixels: int, images: int, limits: Limits) -> int:
    """Return ``pixels``, unless they or the images are too many."""
    if images > limits.images:
        raise TooLarge(f"{images} images in a request, and at most {limits.images}; send smaller batches")
    if pixels > limits.pixels:
        raise TooLarge(f"too many pixels: {pixels} in all pictures together, and at most {limits.pixels}")
    return pixels


def _to_float(name: str, tensor: Tensor) -> Tensor:
    """Pixels as fp32 in [0, 1]."""
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255)
    if not tensor.isfinite().all():
        raise Malformed(f"{name} must be uint8, or finite floats in [0, 1]")
    return tensor.float()


def _from_json(body: bytes, limits: Limits) -> Request:
    what = 'the body is no JSON object with "images" and "prompts"'
    request = _parse(body, limits, what)
    if not request.keys() >= {"images", "prompts"}:
        raise Malformed(what)
    images = _list(request["images"], None)
    entries = _list(request["prompts"], len(images))
    if not images:
        raise Malformed("images must be one or more, all of one size")
    prompts, references = [_prompt(entry, limits) for entry in entries], [_reference(entry) for entry in entries]
    pictures = [_png(text) for text in images]
    own = [None if text is None else _png(text) for text in references]
    areas = [_area(raw) for raw in pictures]
    pixels = _check_size(sum(areas) + sum(map(_area, filter(None, own))), len(images), limits)
    if len(set(areas)) > 1:  # before a batch of the first one's size is allocated
        raise Malformed("images must be one or more, all of one size")

    def decode() -> tuple[Tensor, list[Prompt]]:
        batch = torch.empty(0)
        for row, raw in enumerate(pictures):
            image = _decode_png(raw)
            if not row:
                batch = torch.empty(len(pictures), *image.shape)
            if image.shape != batch.shape[1:]:
                raise Malformed("images must be one or more, all of one size")
            batch[row] = image
        decoded = [None if raw is None else _decode_png(raw).float().div_(255) for raw in own]
        return batch.div_(255), [Prompt(p.text, p.metadata, r) for p, r in zip(prompts, decoded, strict=True)]

    return Request(pixels, decode)


def _list(value: Any, count: int | None) -> list[Any]:
    if not isinstance(value, list) or count not in (None, len(value)):
        raise Malformed("images and prompts must be lists of one length")
    return value


def _prompt(entry: Any, limits: Limits) -> Prompt:
    """A prompt without its reference."""
    entry = {"text": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise Malformed('a prompt must be a text, or an object with "text" and maybe "metadata" and "reference"')
    text, metadata = entry["text"], entry.get("metadata", {})
    if not isinstance(metadata, dict):
        raise Malformed("a prompt's metadata must be an object")
    for name, length in (("text", len(text)), ("metadata", len(json.dumps(metadata)))):
        if length > limits.characters:
            raise TooLarge(f"a prompt's {name} has {length} characters, and at most {limits.characters} are read")
    return Prompt(text, metadata)


def _reference(entry: Any) -> Any:
    return entry.get("reference") if isinstance(entry, dict) else None


def _png(text: Any) -> bytes:
    """The bytes of a PNG in base64."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:  # binascii.Error is a ValueError
        raise Malformed(f"an image is no PNG in base64 ({error})") from error
    if not raw.startswith(PNG_SIGNATURE):  # other decoders stay out of a stranger's reach
        raise Malformed("an image is no PNG in base64 (other first bytes)")
    return raw


def _area(raw: bytes) -> int:
    """The pixels of a PNG, by its header."""
    try:
        return math.prod(open_picture(raw).size)
    except BadImage as bad:
        raise Malformed(f"an image cannot be read: {bad}") from None


def _decode_png(raw: bytes) -> Tensor:
    """The pixels of a PNG as training reads them, ``[3, h, w]`` uint8."""
    try:
        return torch.tensor(np.asarray(read_picture(raw))).permute(2, 0, 1)
    except BadImage as bad:
        raise Malformed(f"an image cannot be read: {bad}") from None


def read_scores(answer: dict[str, Any], count: int) -> list[float]:
    """The scores of an answer to ``count`` images.

    Raises:
        Failed: if they are not ``count`` finite numbers that fp32 can hold.
    """
    scores = answer.get("scores")
    if not isinstance(scores, list):
        raise Failed('its answer has no list "scores"')
    if len(scores) != count:
        raise Failed(f"it gave {len(scores)} scores for {count} images")
    for value in scores:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise Failed(f"it gave {_shortened(value)} for a score")
    return [float(value) for value in scores]


def _shortened(value: Any) -> str:
    """A value of another program's answer as at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + " .."


def answer_limit(count: int) -> int:
    """The number of bytes that an answer for ``count`` images may have."""
    return (1 << 16) + 64 * count
