"""A cache of text embeddings in files: each caption is encoded once, and the encoders need not stay in memory."""

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

Embedding = tuple[Tensor, ...]  # the tensors that a family's network takes for one caption, each with one row
Encode = Callable[[Sequence[str]], Iterator[Embedding]]

TEXT_PARTS = ("text_encoder", "tokenizer", "processor")  # how the names of the parts that read captions begin
MEMORY = 2**30  # bytes of embeddings that stay in memory besides the files


def default_folder() -> Path:
    """Where a user's caches belong."""
    return cache_folder("embeddings")


def text_parts_hash(base: BaseModel) -> str:
    """SHA-256 over a pipeline's list of parts and all files of its text encoders and tokenizers.

    If a single file holds an encoder, the hash covers that whole file and the encoder's settings in the folder.
    """
    sha256 = hashlib.sha256((base.folder / "model_index.json").read_bytes())
    parts = sorted(part for part in base.settings.settings("model_index.json") if part.startswith(TEXT_PARTS))
    for part in parts:
        paths = (base.folder / part).rglob("config.json" if part in base.file_parts else "*")
        for file in sorted(path for path in paths if path.is_file()):
            sha256.update(f"{file.relative_to(base.folder)}\0".encode())
            sha256.update(bytes.fromhex(digest(file)))
    if base.single and any(part in base.file_parts for part in parts):
        sha256.update(bytes.fromhex(digest(base.single.path)))
    return sha256.hexdigest()


def encoding_fingerprint(text_parts: str, family: Family, tokens: int, runtime: Runtime, **arguments: int) -> str:
    """Everything that an embedding depends on besides its caption, as JSON; part of the name of its file.

    ``text_parts``: the hash of :func:`text_parts_hash`.
    """
    sources = {inspect.getfile(cls) for cls in type(family).__mro__ if issubclass(cls, Family)}
    dependencies = {
        "readers": text_parts,
        "family": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(sources)],
        "tokens": tokens,
        **arguments,
        "device": runtime.device,
        "precision": runtime.precision,
        "versions": [version(name) for name in ("torch", "transformers", "diffusers")],
    }
    return json.dumps(dependencies, sort_keys=True)


class EmbeddingCache:
    """Embeddings by caption: from memory, else from the caption's file, else from ``encode``, and then written.

    A file is written under another name and renamed, so that processes can share ``folder``. A damaged file is logged
    and replaced. At most ``memory`` bytes stay in memory.
    """

    def __init__(self, folder: Path, fingerprint: str, encode: Encode, memory: int = MEMORY) -> None:
        self.folder, self._fingerprint, self._encode, self._memory = folder, fingerprint, encode, memory
        self._recent: OrderedDict[str, Embedding] = OrderedDict()
        self._recent_bytes = 0

    def __call__(self, texts: Iterable[str]) -> list[Embedding]:
        """The embeddings of captions, in their order, on the CPU.

        Raises:
            RunError: if the folder cannot be written.
        """
        texts = list(texts)
        embeddings = {text: self._lookup(text) for text in dict.fromkeys(texts)}
        missing = [text for text, embedding in embeddings.items() if embedding is None]
        embeddings |= dict(zip(missing, self._encode_and_write(missing), strict=True))
        return [embedding for text in texts if (embedding := embeddings[text]) is not None]

    def prepare(self, texts: Iterable[str]) -> int:
        """Encode the captions that have no file yet, before training needs the memory; return how many there were.

        Raises:
            RunError: if the folder cannot be written.
        """
        missing = [text for text in dict.fromkeys(texts) if not self.file(text).is_file()]
        for _ in self._encode_and_write(missing):
            pass
        return len(missing)

    def file(self, text: str) -> Path:
        """The file of a caption's embedding."""
        name = hashlib.sha256(json.dumps([self._fingerprint, text]).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _lookup(self, text: str) -> Embedding | None:
        if text in self._recent:
            self._recent.move_to_end(text)
            return self._recent[text]
        file = self.file(text)
        if not file.is_file():
            return None
        try:
            embedding = _read(file)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("grpaint: %s The caption is encoded again.", error)
            return None
        self._remember(text, embedding)
        return embedding

    def _encode_and_write(self, texts: Sequence[str]) -> Iterator[Embedding]:
        for text, tensors in zip(texts, self._encode(texts) if texts else (), strict=True):
            embedding = tuple(tensor.detach().cpu().clone() for tensor in tensors)
            self._write(text, embedding)
            self._remember(text, embedding)
            yield embedding

    def _write(self, text: str, embedding: Embedding) -> None:
        file = self.file(text)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = {str(number): tensor for number, tensor in enumerate(embedding)}
            write_weights(file, tensors, {"caption": text, "sha256": _digest(embedding)}, follow=False)
        except OSError as error:
            raise RunError(
                f'model.cache = "{self.folder}": cannot be written ({error.strerror or error}). Name a folder with '
                'free space, or set model.embeddings = "encode".'
            ) from error

    def _remember(self, text: str, embedding: Embedding) -> None:
        self._recent[text] = embedding
        self._recent_bytes += _bytes(embedding)
        while self._recent_bytes > self._memory:
            self._recent_bytes -= _bytes(self._recent.popitem(last=False)[1])


def _read(file: Path) -> Embedding:
    tensors, header = read_weights(file)
    embedding = tuple(tensors[name] for name in sorted(tensors, key=int))
    if header.get("sha256") != _digest(embedding):
        raise CheckpointError(f"{file}: its tensors do not match the hash in its header.")
    return embedding


def _bytes(embedding: Embedding) -> int:
    return sum(tensor.nbytes for tensor in embedding)


def _digest(embedding: Embedding) -> str:
    sha256 = hashlib.sha256()
    for tensor in embedding:
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
