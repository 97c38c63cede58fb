"""How images and prompts travel: a safetensors file, or JSON with PNGs; never pickle. Answers are JSON.

In a safetensors body ``images`` is ``[b, 3, h, w]``, uint8 or float in [0, 1]; ``reference.N`` is one
``[3, h, w]``; the header's metadata holds ``prompts``, a JSON list of ``{"text", "metadata", "reference": N}``.
"""

import base64
import binascii
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.images.encoding import eight_bit
from grpaint.rewards.elsewhere.client import Failed

Pixels = Literal["float32", "uint8"]
TENSORS, JSON = "application/x-safetensors", "application/json"
LARGEST = 3e38  # what fp32 holds
MOST_PIXELS = 1 << 26  # of one PNG: a small file may unfold to gigabytes


class Malformed(ValueError):
    """A request that is not what the protocol says; the message says how."""


def pack(images: Tensor, prompts: Sequence[Prompt], pixels: Pixels) -> bytes:
    """Images in [0, 1] and their prompts as a safetensors file.

    ``uint8`` rounds to 256 levels. Metadata that JSON cannot hold stays behind.
    """
    tensors, said, known = {"images": _pixels(images, pixels)}, list[dict[str, Any]](), dict[int, int]()
    for prompt in prompts:
        entry: dict[str, Any] = {"text": prompt.text, "metadata": _plain(prompt.metadata)}
        if prompt.reference is not None:  # one for its whole group
            number = known.setdefault(id(prompt.reference), len(known))
            tensors[f"reference.{number}"] = _pixels(prompt.reference, pixels)
            entry["reference"] = number
        said.append(entry)
    return save(tensors, {"prompts": json.dumps(said)})


def _pixels(images: Tensor, pixels: Pixels) -> Tensor:
    images = images.detach().cpu().float().contiguous()
    return eight_bit(images) if pixels == "uint8" else images


def _plain(metadata: Any) -> dict[str, Any]:
    out = {}
    for name, value in metadata.items():
        try:
            out[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return out


def unpack(body: bytes, kind: str) -> tuple[Tensor, list[Prompt]]:
    """What :func:`pack` wrote, or the same as JSON with PNGs in base64; images ``[b, 3, h, w]``, fp32 in [0, 1].

    Raises:
        Malformed: for anything else.
    """
    match kind.partition(";")[0].strip().lower():
        case "application/x-safetensors":
            return _from_tensors(body)
        case "application/json":
            return _from_json(body)
    raise Malformed(f"content type {kind!r:.60}: send {TENSORS} or {JSON}")


def _from_tensors(body: bytes) -> tuple[Tensor, list[Prompt]]:
    try:
        tensors = load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        entries = json.loads(header["__metadata__"]["prompts"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Malformed(f"the body is no safetensors file with prompts ({type(error).__name__}: {error})") from error
    if "images" not in tensors:
        raise Malformed('the body has no tensor "images"')
    images = _unit("images", tensors["images"], 4)
    references = {name: _unit(name, tensor, 3) for name, tensor in tensors.items() if name != "images"}
    prompts = [_prompt(entry) for entry in _list(entries, len(images))]
    numbers = [entry.get("reference") if isinstance(entry, dict) else None for entry in entries]
    try:
        pictures = [None if number is None else references[f"reference.{number}"] for number in numbers]
    except KeyError as error:
        raise Malformed(f"a prompt names {error}, and the body has no such tensor") from error
    return images, [Prompt(p.text, p.metadata, r) for p, r in zip(prompts, pictures, strict=True)]


def _unit(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """Pixels as fp32 in [0, 1]."""
    if tensor.ndim != dimensions or tensor.shape[-3] != 3 or not tensor.numel():
        raise Malformed(f"{name} has shape {tuple(tensor.shape)}; [b, 3, h, w] is wanted, a reference without b")
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise Malformed(f"{name} must be uint8, or finite floats in [0, 1]")
    return tensor.float()


def _from_json(body: bytes) -> tuple[Tensor, list[Prompt]]:
    try:
        said = json.loads(body)
        pictures, entries = said["images"], said["prompts"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Malformed(f'the body is no JSON object with "images" and "prompts" ({type(error).__name__})') from error
    images = [_picture(text) for text in _list(pictures, None)]
    if not images or len({image.shape for image in images}) > 1:
        raise Malformed("images must be one or more, all of one size")
    prompts = []
    for entry in _list(entries, len(images)):
        prompt, reference = _prompt(entry), entry.get("reference") if isinstance(entry, dict) else None
        prompts.append(Prompt(prompt.text, prompt.metadata, None if reference is None else _picture(reference)))
    return torch.stack(images), prompts


def _list(found: Any, count: int | None) -> list[Any]:
    if not isinstance(found, list) or count not in (None, len(found)):
        raise Malformed("images and prompts must be lists of one length")
    return found


def _prompt(entry: Any) -> Prompt:
    if isinstance(entry, str):
        return Prompt(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise Malformed('a prompt must be a text, or an object with "text" and maybe "metadata" and "reference"')
    metadata = entry.get("metadata", {})
    if not isinstance(metadata, dict):
        raise Malformed("a prompt's metadata must be an object")
    return Prompt(entry["text"], metadata)


def _picture(text: Any) -> Tensor:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Malformed(f"an image has {picture.width} x {picture.height} pixels; at most {MOST_PIXELS}")
            raw = bytearray(picture.convert("RGB").tobytes())
            flat = torch.frombuffer(raw, dtype=torch.uint8).view(picture.height, picture.width, 3)
    except (OSError, ValueError, TypeError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"an image is no PNG in base64 ({type(error).__name__})") from error
    return flat.permute(2, 0, 1).float() / 255


def scores(answer: dict[str, Any], count: int) -> list[float]:
    """The ``count`` finite scores of an answer.

    Raises:
        Failed: where they are not what a reward may say.
    """
    found = answer.get("scores")
    if not isinstance(found, list):
        raise Failed('its answer has no list "scores"')
    if len(found) != count:
        raise Failed(f"it gave {len(found)} scores for {count} images")
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise Failed(f"it gave {printable_value(value)} for a score")
    return [float(value) for value in found]


def printable_value(value: Any) -> str:
    """A value of a foreign answer, cut short."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + " .."


def answer_limit(count: int) -> int:
    """Bytes that an answer for ``count`` images may have."""
    return (1 << 16) + 64 * count
