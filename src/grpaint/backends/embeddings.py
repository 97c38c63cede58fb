"""Text embeddings in files: a caption is encoded once, and the encoders need not stay in memory."""

import hashlib
import inspect
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from grpaint.backends.base_model import BaseModel
from grpaint.backends.families import Family
from grpaint.core.errors import CheckpointError, RunError
from grpaint.core.runtime import Runtime
from grpaint.storage.cache import cache_folder
from grpaint.storage.files import digest, read_weights, write_weights

Parts = tuple[Tensor, ...]  # what a family tells the network about one caption, each with one row
Encode = Callable[[Sequence[str]], Iterator[Parts]]

READERS = ("text_encoder", "tokenizer")  # how pipelines' parts that read captions are named, with a number or without
MEMORY = 2**30  # bytes of embeddings kept at hand beside the files


def default_folder() -> Path:
    """Where a user's caches belong."""
    return cache_folder("embeddings")


def readers_hash(base: BaseModel) -> str:
    """SHA-256 over all of a pipeline that reads captions: encoders, tokenizers, the list of parts.

    Of encoders that a single file holds: the whole file, and their settings in the folder.
    """
    whole = hashlib.sha256((base.folder / "model_index.json").read_bytes())
    parts = sorted(part for part in base.settings.settings("model_index.json") if part.startswith(READERS))
    for part in parts:
        found = (base.folder / part).rglob("config.json" if part in base.held else "*")
        for file in sorted(file for file in found if file.is_file()):
            whole.update(f"{file.relative_to(base.folder)}\0".encode())
            whole.update(bytes.fromhex(digest(file)))
    if base.single and any(part in base.held for part in parts):
        whole.update(bytes.fromhex(digest(base.single.path)))
    return whole.hexdigest()


def made_by(readers: str, family: Family, tokens: int, runtime: Runtime) -> str:
    """All that an embedding depends on besides its caption, so that one is used only where it would be made alike."""
    code = {inspect.getfile(kind) for kind in type(family).__mro__ if issubclass(kind, Family)}
    said = {
        "readers": readers,
        "family": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(code)],
        "tokens": tokens,
        "device": runtime.device,
        "precision": runtime.precision,
        "versions": [version(name) for name in ("torch", "transformers", "diffusers")],
    }
    return json.dumps(said, sort_keys=True)


class EmbeddingCache:
    """Embeddings by caption: at hand, else from its file, else made by ``encode`` and written.

    Files are written aside and renamed, so that processes may share ``folder``; one that is damaged is said to be, and
    made again. At most ``memory`` bytes stay at hand.
    """

    def __init__(self, folder: Path, made_by: str, encode: Encode, memory: int = MEMORY) -> None:
        self.folder, self._made_by, self._encode, self._memory = folder, made_by, encode, memory
        self._recent: OrderedDict[str, Parts] = OrderedDict()
        self._held = 0

    def __call__(self, texts: Iterable[str]) -> list[Parts]:
        """The embeddings of captions, in their order, on the CPU.

        Raises:
            RunError: where the folder cannot be written.
        """
        texts = list(texts)
        found = {text: self._recall(text) for text in dict.fromkeys(texts)}
        missing = [text for text, parts in found.items() if parts is None]
        found |= dict(zip(missing, self._made(missing), strict=True))
        return [parts for text in texts if (parts := found[text]) is not None]

    def prepare(self, texts: Iterable[str]) -> int:
        """Have files for captions, before anything else takes memory; how many were missing.

        Raises:
            RunError: where the folder cannot be written.
        """
        missing = [text for text in dict.fromkeys(texts) if not self.file(text).is_file()]
        for _ in self._made(missing):
            pass
        return len(missing)

    def file(self, text: str) -> Path:
        """Where a caption's embedding is kept."""
        name = hashlib.sha256(json.dumps([self._made_by, text]).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _recall(self, text: str) -> Parts | None:
        if text in self._recent:
            self._recent.move_to_end(text)
            return self._recent[text]
        file = self.file(text)
        if not file.is_file():
            return None
        try:
            parts = _read(file)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("grpaint: %s The caption is encoded again.", error)
            return None
        self._remember(text, parts)
        return parts

    def _made(self, texts: Sequence[str]) -> Iterator[Parts]:
        for text, made in zip(texts, self._encode(texts) if texts else (), strict=True):
            parts = tuple(part.detach().cpu().clone() for part in made)
            self._write(text, parts)
            self._remember(text, parts)
            yield parts

    def _write(self, text: str, parts: Parts) -> None:
        file = self.file(text)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = {str(number): part for number, part in enumerate(parts)}
            write_weights(file, tensors, {"caption": text, "sha256": _digest(parts)})
        except OSError as error:
            raise RunError(
                f'model.cache = "{self.folder}": cannot be written ({error.strerror or error}). Name a folder with '
                'room, or set model.embeddings = "encode".'
            ) from error

    def _remember(self, text: str, parts: Parts) -> None:
        self._recent[text] = parts
        self._held += _bytes(parts)
        while self._held > self._memory:
            self._held -= _bytes(self._recent.popitem(last=False)[1])


def _read(file: Path) -> Parts:
    tensors, header = read_weights(file)
    parts = tuple(tensors[name] for name in sorted(tensors, key=int))
    if header.get("sha256") != _digest(parts):
        raise CheckpointError(f"{file}: its tensors are not those that were written.")
    return parts


def _bytes(parts: Parts) -> int:
    return sum(part.nbytes for part in parts)


def _digest(parts: Parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
