"""The classes of a pipeline's parts, named by its folder: networks, schedulers, guiders, tokenizers of two libraries.

A downloaded folder is data. ``model_index.json`` names a library and a class for each part, and a part's
``config.json`` may name an implementation of attention to download; neither brings code of its own here.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from grpaint.backends.families.folder import PipelineFolder
from grpaint.core.errors import CheckpointError
from grpaint.storage.reading import read_json

# by library, as a folder names it: the module with its classes; Kolors' language model and tokenizer are diffusers' own
MODULES = {"diffusers": "diffusers", "transformers": "transformers", "kolors": "diffusers.pipelines.kolors"}
BASES = {
    "diffusers": ("ModelMixin", "SchedulerMixin", "BaseGuidance"),
    "transformers": (
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "FeatureExtractionMixin",
        "ImageProcessingMixin",
        "ProcessorMixin",
    ),
}
AUDIO = "audio_tokenizer"  # a processor opens the model that this names, of any class and place
OWN_CODE = "auto_map"  # a processor opens its parts by the classes that this names, in files of the folder
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")  # a value OWNER/NAME is a program from the hub


def listed_parts(folder: PipelineFolder, without: Collection[str] = ()) -> list[str]:
    """The parts that ``model_index.json`` lists, except those in ``without``; lists of numbers are settings."""
    index = folder.settings("model_index.json")
    return [
        part
        for part, kind in index.items()
        if isinstance(kind, list)
        and any(not isinstance(item, int | float | None) for item in kind)
        and part not in without
    ]


def part_class(folder: PipelineFolder, part: str) -> Any:
    """The class of a part.

    Raises:
        CheckpointError: if the folder names another kind of class, or another library.
    """
    kind = folder.settings("model_index.json").get(part)
    library, name = kind if isinstance(kind, list) and len(kind) == 2 else (None, None)
    cls = None
    if isinstance(library, str) and library in MODULES and isinstance(name, str):
        cls = getattr(importlib.import_module(MODULES[library]), name, None)
        if missing := getattr(cls, "_backends", None):  # a placeholder
            raise CheckpointError(f"{folder.path}: {part}: {library}.{name} needs {', '.join(missing)}; install it.")
        bases = tuple(getattr(importlib.import_module(module), base) for module in BASES for base in BASES[module])
        cls = cls if isinstance(cls, type) and issubclass(cls, bases) else None
    if cls is None:
        raise CheckpointError(
            f"{folder.path / 'model_index.json'}: {part} = {kind!r:.80}: a folder is data and names no code; a part is "
            "a network, a scheduler, a guider or a tokenizer of diffusers or transformers. Save it as one of these."
        )
    return cls


def check_no_code(folder: PipelineFolder, without: Collection[str]) -> None:
    """Check that no part of a pipeline, except those in ``without``, would run code of the folder or the hub.

    Raises:
        CheckpointError: if one would, with the file and what it names.
    """
    name = folder.settings("model_index.json").get("_class_name")
    if not isinstance(name, str):  # a list names a file of the folder
        raise CheckpointError(
            f"{folder.path / 'model_index.json'}: _class_name = {name!r:.80}: a folder names no code."
        )
    for part in listed_parts(folder, without):
        processor = _is_processor(part_class(folder, part))
        for file in sorted((folder.path / part).glob("*config.json")):
            for key, value in _entries(read_json(file)):
                key_name = key.lstrip("_")
                foreign = key_name.startswith(AUDIO) or (processor and key_name == OWN_CODE)
                if foreign or (key_name.startswith(IMPLEMENTATIONS) and "/" in str(value)):
                    raise CheckpointError(
                        f"{file}: {key} = {value!r:.80} would run a program from elsewhere; a folder is data. "
                        "Remove the key."
                    )


def _is_processor(cls: type) -> bool:
    """Whether transformers opens the parts of a class by names in their files, and not by the class itself."""
    return issubclass(cls, importlib.import_module("transformers").ProcessorMixin)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value in nested tables and lists."""
    if isinstance(value, Mapping):
        yield from value.items()
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _entries(item)
