"""An image-text scorer for the embedded world: its stand-in for CLIP, 1.5 M parameters, trained on its drawings.

It knows 32 x 32 drawings and the captions of the grammar, and nothing else. Like any learned scorer it can be fooled;
the checker is the judge. Made by ``python -m grpaint.scenes.contrast``; the header of its file says how well it reads.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grpaint.scenes.captions import LONGEST, VOCABULARY, tokens
from grpaint.storage.files import check_tensors, read_weights

SHIPPED = Path(__file__).parent.parent / "recipes/scenes/scorer.safetensors"
WIDTH = 192  # of the space that images and captions share
_CHANNELS = (32, 64, 96, 128, 160)


class _ImageTower(nn.Module):
    """Five convolutions from 16 x 16 to 4 x 4; the last map is read whole, since where things lie matters."""

    def __init__(self) -> None:
        super().__init__()
        kernels, strides = (4, 3, 3, 3, 3), (2, 2, 1, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, kernel, stride, 1), nn.GroupNorm(8, after), nn.ReLU())
            for before, after, kernel, stride in zip((3, *_CHANNELS), _CHANNELS, kernels, strides, strict=False)
        )
        self.out = nn.Linear(_CHANNELS[-1] * 16, WIDTH)

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each layer sees."""
        seen, x = [], images * 2 - 1
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        return seen

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.maps(images)[-1].flatten(1))


class _TextTower(nn.Module):
    """Caption tokens side by side through three matrices: the order of the words is where they stand."""

    def __init__(self, width: int = 48, hidden: int = 512) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), width)
        self.enter, self.middle = nn.Linear(LONGEST * width, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, WIDTH)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.enter(self.words(numbers).flatten(1)).relu()
        x = x + self.middle(F.layer_norm(x, x.shape[-1:])).relu()
        return self.out(F.layer_norm(x, x.shape[-1:]))


class Scorer(nn.Module):
    """Images ``[b, 3, 32, 32]`` in [0, 1] and captions to a shared space, where what belongs together lies close."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = _ImageTower(), _TextTower()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # of the contrast, not of the score

    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Of length 1."""
        return F.normalize(self.image(images), dim=1)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """Of length 1.

        Raises:
            ConfigError: at a word outside the vocabulary.
        """
        numbers = torch.tensor([tokens(text) for text in texts], device=self.log_scale.device)
        return F.normalize(self.text(numbers), dim=1)

    def score(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """The cosine between each image and its own caption, in [-1, 1]."""
        return (self.image_features(images) * self.text_features(texts)).sum(1)

    def distance(self, images: Float[Tensor, "b 3 h w"], others: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """A perceptual distance in the image tower's layers, 0 for equal images.

        LPIPS (Zhang et al. 2018) without its learned weights: the features of every place scaled to length 1, the
        squared difference averaged over places, the mean over the five layers. Each lies in [0, 4].
        """
        parts = [
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
            for a, b in zip(self.image.maps(images), self.image.maps(others), strict=True)
        ]
        return torch.stack(parts).mean(0)


def load_scorer(file: Path) -> Scorer:
    """A scorer from a weight file, in fp32 on the CPU.

    Raises:
        CheckpointError: where the file is missing, damaged, or of another architecture.
    """
    stored, header = read_weights(file)
    with torch.random.fork_rng(devices=[]):  # module initialisation reads the global generator; leave it as it was
        scorer = Scorer()
    check_tensors(file, stored, scorer.state_dict(), header, {"model": "scenes-scorer"})
    scorer.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return scorer.eval().requires_grad_(False)


@functools.cache
def shipped_scorer() -> Scorer:
    """The scorer in the package, opened once."""
    return load_scorer(SHIPPED)
