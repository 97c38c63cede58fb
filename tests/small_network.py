"""The built-in model in a small size, where a test is about runs and not about what the network can do.

A network that begins at random has 20 thousand parameters in place of 2.5 million; a file is opened in the size that it
has, so that the shipped bases stay what they are, unless ``small_bases`` puts small ones in their place.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from grpaint.backends import scenes
from grpaint.backends.scene_net import Architecture
from grpaint.core.runtime import Runtime
from grpaint.storage.files import write_weights

SMALL = Architecture(width=20, layers=2, heads=2, text_width=16, text_layers=1)


def _size(model: scenes.Scenes) -> Architecture:
    """Small, unless it starts from a file of whole size; what is no weight file is left for the model to refuse."""
    file = Path(model.start) if model.start else scenes.START[model.parametrisation]
    file = file / "model.safetensors" if file.is_dir() else file
    try:
        with safe_open(file, "pt") as stored:
            width = stored.get_slice("word_places").get_shape()[1]
    except (OSError, SafetensorError):
        return SMALL
    return SMALL if width == SMALL.text_width else Architecture()


@contextlib.contextmanager
def small_network() -> Iterator[None]:
    """Let the built-in model be small."""
    load = scenes.Scenes.load

    def sized(self: scenes.Scenes, runtime: Runtime) -> scenes.ScenePolicy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "Architecture", lambda: _size(self))
            return load(self, runtime)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes.Scenes, "load", sized)
        yield


@contextlib.contextmanager
def small_bases(folder: Path) -> Iterator[None]:
    """Within ``small_network``: bases in ``folder`` that draw something else for each row, as the shipped ones do."""
    with pytest.MonkeyPatch.context() as patch:
        for parametrisation in ("velocity", "epsilon"):
            policy = scenes.Scenes(parametrisation, start="random").load(Runtime())
            draw = torch.Generator().manual_seed(0)
            for layer in (policy.net.leave, policy.net.modulate):  # zeros where nothing was learnt
                layer.weight.data.normal_(std=0.2, generator=draw)
            write_weights(folder / f"{parametrisation}.safetensors", *policy.export("current"))
            patch.setitem(scenes.START, parametrisation, folder / f"{parametrisation}.safetensors")
        yield
