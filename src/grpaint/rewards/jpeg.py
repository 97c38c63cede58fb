"""The size of an image as JPEG: DDPO's compressibility and incompressibility."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import Pair, RewardBase
from grpaint.images.encoding import eight_bit_picture
from grpaint.rewards.self_test_images import noise


@dataclass(frozen=True)
class Jpeg(RewardBase):
    """The size of an image as JPEG in kB (1000 bytes), negated if ``want`` is "small" (DDPO, Black et al. 2023)."""

    needs_caption = False

    want: Literal["small", "large"] = "small"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must lie in 1..95, got {self.quality}")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        sign = -1 if self.want == "small" else 1
        return torch.tensor([sign * self._size(image) / 1000 for image in images])

    def _size(self, image: Tensor) -> int:
        file = io.BytesIO()
        eight_bit_picture(image).save(file, "JPEG", quality=self.quality)
        return len(file.getvalue())

    def pair(self) -> Pair:
        flat, grain = torch.full((3, 64, 64), 0.5), noise(64)
        better, worse = (flat, grain) if self.want == "small" else (grain, flat)
        low, high = (-30, 0) if self.want == "small" else (0, 30)
        return Pair(better, worse, Prompt(""), low, high)
