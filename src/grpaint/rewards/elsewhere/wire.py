"""The format of reward requests and answers: safetensors, or JSON with PNGs; never pickle. Answers are JSON.

In a safetensors body ``images`` is ``[b, 3, h, w]``, uint8 or float in [0, 1], and each ``reference.N`` is one image
``[3, h, w]``; the header's metadata contains ``prompts``, a JSON list of ``{"text", "metadata", "reference": N}``.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.images.encoding import eight_bit
from grpaint.images.pictures import BadImage, read_picture, to_tensor
from grpaint.rewards.elsewhere.client import Failed

PixelFormat = Literal["float32", "uint8"]
SAFETENSORS_TYPE, JSON_TYPE = "application/x-safetensors", "application/json"
LARGEST = 3e38  # a score must fit into fp32
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Malformed(ValueError):
    """A request that does not follow the protocol; the message says what is wrong."""


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
        except (TypeError, ValueError):
            continue
    return out


def unpack(body: bytes, content_type: str) -> tuple[Tensor, list[Prompt]]:
    """Read a body of :func:`pack`, or its equivalent in JSON; images ``[b, 3, h, w]``, fp32 in [0, 1].

    Raises:
        Malformed: if it is neither.
    """
    match content_type.partition(";")[0].strip().lower():
        case "application/x-safetensors":
            return _from_tensors(body)
        case "application/json":
            return _from_json(body)
    raise Malformed(f"content type {content_type!r:.60}: send {SAFETENSORS_TYPE} or {JSON_TYPE}")


def _from_tensors(body: bytes) -> tuple[Tensor, list[Prompt]]:
    try:
        tensors = load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        entries = json.loads(header["__metadata__"]["prompts"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Malformed(f"the body is no safetensors file with prompts ({type(error).__name__}: {error})") from error
    if "images" not in tensors:
        raise Malformed('the body has no tensor "images"')
    images = _to_float("images", tensors["images"], 4)
    references = {name: _to_float(name, tensor, 3) for name, tensor in tensors.items() if name != "images"}
    prompts = [_prompt(entry) for entry in _list(entries, len(images))]
    numbers = [entry.get("reference") if isinstance(entry, dict) else None for entry in entries]
    try:
        pictures = [None if number is None else references[f"reference.{number}"] for number in numbers]
    except KeyError as error:
        raise Malformed(f"a prompt names {error}, and the body has no such tensor") from error
    return images, [Prompt(p.text, p.metadata, r) for p, r in zip(prompts, pictures, strict=True)]


def _to_float(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """Pixels as fp32 in [0, 1]; ``dimensions`` is 4 for a batch and 3 for one image."""
    if tensor.ndim != dimensions or tensor.shape[-3] != 3 or not tensor.numel():
        raise Malformed(f"{name} has shape {tuple(tensor.shape)}; it must be [b, 3, h, w], a reference [3, h, w]")
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise Malformed(f"{name} must be uint8, or finite floats in [0, 1]")
    return tensor.float()


def _from_json(body: bytes) -> tuple[Tensor, list[Prompt]]:
    try:
        request = json.loads(body)
        pictures, entries = request["images"], request["prompts"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Malformed(f'the body is no JSON object with "images" and "prompts" ({type(error).__name__})') from error
    images = [_decode_png(text) for text in _list(pictures, None)]
    if not images or len({image.shape for image in images}) > 1:
        raise Malformed("images must be one or more, all of one size")
    prompts = []
    for entry in _list(entries, len(images)):
        prompt, reference = _prompt(entry), entry.get("reference") if isinstance(entry, dict) else None
        prompts.append(Prompt(prompt.text, prompt.metadata, None if reference is None else _decode_png(reference)))
    return torch.stack(images), prompts


def _list(value: Any, count: int | None) -> list[Any]:
    if not isinstance(value, list) or count not in (None, len(value)):
        raise Malformed("images and prompts must be lists of one length")
    return value


def _prompt(entry: Any) -> Prompt:
    if isinstance(entry, str):
        return Prompt(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise Malformed('a prompt must be a text, or an object with "text" and maybe "metadata" and "reference"')
    metadata = entry.get("metadata", {})
    if not isinstance(metadata, dict):
        raise Malformed("a prompt's metadata must be an object")
    return Prompt(entry["text"], metadata)


def _decode_png(text: Any) -> Tensor:
    """A PNG in base64 as ``[3, h, w]`` in [0, 1], its pixels as training reads them."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:  # binascii.Error is a ValueError
        raise Malformed(f"an image is no PNG in base64 ({error})") from error
    if not raw.startswith(PNG_SIGNATURE):  # other decoders stay out of a stranger's reach
        raise Malformed("an image is no PNG in base64 (other first bytes)")
    try:
        return to_tensor([read_picture(raw)])[0]
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
