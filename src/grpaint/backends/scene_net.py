"""The network of the built-in model: a transformer over image patches that attend to each other and to the caption.

It outputs the clean image, not the noise, since a patch of 8 x 8 x 3 = 192 values is wider than the model (160) and
noise has no structure to compress. Attribute names are the tensor names of the shipped weight files.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grpaint.scenes.captions import MAX_TOKENS, VOCABULARY
from grpaint.scenes.shapes import SIDE


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; with the defaults it has 2.5 M parameters."""

    width: int = 160
    layers: int = 6
    heads: int = 5
    text_width: int = 96
    text_layers: int = 2
    patch: int = 8


def _sinusoid(level: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding ``[b, width]`` of noise levels ``[b]`` in [0, 1]."""
    frequency = torch.exp(torch.arange(width // 2, device=level.device) * (-math.log(1000.0) / (width // 2)))
    angle = 1000 * level[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class Attention(nn.Module):
    """Attention with queries from ``x``, and keys and values from ``x`` and optionally a text sequence.

    It is written out, since the backward of scaled_dot_product_attention is slow in bf16 on CPUs.
    """

    def __init__(self, width: int, heads: int, text_width: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.text = nn.Linear(text_width, 2 * width, bias=False) if text_width else None
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.text is not None and text is not None:
            text_k, text_v = self.text(text).chunk(2, -1)
            k, v = torch.cat([k, text_k], 1), torch.cat([v, text_v], 1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        weight = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.out((weight.to(v.dtype) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers with a hidden width of four times ``width``."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


class TextBlock(nn.Module):
    """A pre-norm transformer layer over caption tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention, self.mlp = Attention(width, 4), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class ImageBlock(nn.Module):
    """A transformer layer over patches, modulated by the noise level.

    Shift, scale and gate are values that all layers share plus this layer's learned offsets ``table``, ``[6, width]``.
    """

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.attention = Attention(size.width, size.heads, size.text_width)
        self.mlp = Mlp(size.width)
        gates_open = torch.tensor([0.0, 0, 1, 0, 0, 1])
        self.table = nn.Parameter(gates_open[:, None].repeat(1, size.width))

    def forward(self, x: Tensor, text: Tensor, modulation: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).unsqueeze(2).unbind(1)
        width = x.shape[-1:]
        x = x + gate1 * self.attention(F.layer_norm(x, width) * (1 + scale1) + shift1, text)
        return x + gate2 * self.mlp(F.layer_norm(x, width) * (1 + scale2) + shift2)


class SceneNet(nn.Module):
    """Map noisy images, noise levels and caption states to clean images ``[b, 3, 32, 32]`` in about [-1, 1]."""

    def __init__(self, size: Architecture) -> None:
        super().__init__()
        self.size = size
        grid = SIDE // size.patch
        values = 3 * size.patch**2
        self.words = nn.Embedding(len(VOCABULARY), size.text_width)
        self.word_places = nn.Parameter(torch.randn(MAX_TOKENS, size.text_width) * 0.25)
        self.text = nn.Sequential(*(TextBlock(size.text_width) for _ in range(size.text_layers)))
        self.text.append(nn.LayerNorm(size.text_width))
        self.places = nn.Parameter(torch.randn(grid * grid, size.width) * 0.5)
        self.enter, self.leave = nn.Linear(values, size.width), nn.Linear(size.width, values)
        self.level = nn.Sequential(nn.Linear(256, size.width), nn.SiLU())
        self.modulate = nn.Linear(size.width, 6 * size.width)
        self.blocks = nn.ModuleList(ImageBlock(size) for _ in range(size.layers))
        for layer in (self.leave, self.modulate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.words.weight, std=0.5)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Caption states ``[b, 12, text_width]`` of token ids ``[b, 12]``."""
        return self.text(self.words(token_ids) + self.word_places)

    def forward(self, x: Tensor, level: Tensor, text: Tensor) -> Tensor:
        patch = self.size.patch
        h = self.enter(F.pixel_unshuffle(x, patch).flatten(2).mT) + self.places
        modulation = self.modulate(self.level(_sinusoid(level, 256))).unflatten(1, (6, -1))
        for block in self.blocks:
            h = block(h, text, modulation)
        out = self.leave(F.layer_norm(h, h.shape[-1:]))
        # contiguous: pixel_shuffle keeps a channels-last layout, and mixed layouts slow down everything after it
        return F.pixel_shuffle(out.mT.contiguous().unflatten(2, (SIDE // patch, SIDE // patch)), patch)
