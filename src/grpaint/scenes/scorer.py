"""An image-text scorer for the embedded world, in place of CLIP: 1.5 M parameters, trained on its drawings.

It handles only 32 x 32 drawings and captions of the grammar. Like any learned scorer it can be fooled, so success is
measured by the checker. Trained by ``python -m grpaint.scenes.contrast``; the header of its file has its quality.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from grpaint.scenes.captions import MAX_TOKENS, VOCABULARY, tokens
from grpaint.storage.files import check_tensors, read_weights

SHIPPED = Path(__file__).parent.parent / "recipes/scenes/scorer.safetensors"
WIDTH = 192  # dimensions of the feature space of images and captions
_CHANNELS = (32, 64, 96, 128, 160)


class _ImageTower(nn.Module):
    """Five convolutions with maps from 16 x 16 to 4 x 4; the last map is not pooled, since positions matter."""

    def __init__(self) -> None:
        super().__init__()
        kernels, strides = (4, 3, 3, 3, 3), (2, 2, 1, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, kernel, stride, 1), nn.GroupNorm(8, after), nn.ReLU())
            for before, after, kernel, stride in zip((3, *_CHANNELS), _CHANNELS, kernels, strides, strict=False)
        )
        self.out = nn.Linear(_CHANNELS[-1] * 16, WIDTH)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature map of each layer, for images in [0, 1]."""
        maps, x = [], images * 2 - 1
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.maps(images)[-1].flatten(1))


class _TextTower(nn.Module):
    """Concatenated token embeddings through three linear layers; each position has weights of its own."""

    def __init__(self, width: int = 48, hidden: int = 512) -> None:
        super().__init__()
        self.words = nn.Embedding(len(VOCABULARY), width)
        self.enter, self.middle = nn.Linear(MAX_TOKENS * width, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, WIDTH)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.enter(self.words(numbers).flatten(1)).relu()
        x = x + self.middle(F.layer_norm(x, x.shape[-1:])).relu()
        return self.out(F.layer_norm(x, x.shape[-1:]))


class Scorer(nn.Module):
    """Map images ``[b, 3, 32, 32]`` in [0, 1] and captions to a shared space, each image close to its caption."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = _ImageTower(), _TextTower()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # used by the contrastive loss only

    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b width"]:
        """Compute the features of images, of length 1."""
        return F.normalize(self.image(images), dim=1)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """Compute the features of captions, of length 1.

        Raises:
            ConfigError: if a word is not in the vocabulary, or a caption is too long.
        """
        numbers = torch.tensor([tokens(text) for text in texts], device=self.log_scale.device)
        return F.normalize(self.text(numbers), dim=1)

    def score(self, images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
        """Compute the cosine between each image and its own caption, in [-1, 1]."""
        return (self.image_features(images) * self.text_features(texts)).sum(1)

    def distance(self, images: Float[Tensor, "b 3 h w"], others: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Compute a perceptual distance from the image tower's layers, in [0, 2] and 0 for equal images.

        It is LPIPS (Zhang et al. 2018) without learned weights: the features at each position are scaled to length 1,
        their squared difference is summed over channels and averaged over positions, then averaged over the layers.
        """
        parts = [
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
            for a, b in zip(self.image.maps(images), self.image.maps(others), strict=True)
        ]
        return torch.stack(parts).mean(0)


def load_scorer(file: Path) -> Scorer:
    """Load a scorer from a weight file, in fp32 on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another architecture.
    """
    stored, header = read_weights(file)
    with torch.random.fork_rng(devices=[]):  # module initialisation uses the global generator; leave it as it was
        scorer = Scorer()
    check_tensors(file, stored, scorer.state_dict(), header, {"model": "scenes-scorer"})
    scorer.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return scorer.eval().requires_grad_(False)


@functools.cache
def shipped_scorer() -> Scorer:
    """Return the scorer in the package; its file is read once."""
    return load_scorer(SHIPPED)
