"""Pieces of recipes on the exact Gaussian model: many small runs, in which every choice can be drawn by a test."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpaint.backends.gaussian import GaussianModel, GaussianPolicy, Mean
from grpaint.core.path import FlowPath, VpPath
from grpaint.core.policy import CaptionedImages, Prompt
from grpaint.core.rng import uniform

SIDE = 4


class SavedGaussian(GaussianPolicy):
    """A Gaussian policy that a run can save."""

    guidance = 1.0

    def export(self, weights="average"):
        with self.weights.use(weights):
            return {name: tensor.detach().clone() for name, tensor in self.weights.trainable.items()}, {}


@dataclass(frozen=True)
class Gaussian:
    """The ``[model]`` table; ``diffusion``: on a variance-preserving path in place of a flow."""

    diffusion: bool = False

    sample_shape = (1, SIDE, SIDE)
    pixels = (SIDE, SIDE)
    calls = 1

    @property
    def path(self):
        return VpPath(betas="cosine", spacing="trailing", final="one") if self.diffusion else FlowPath()

    def from_file(self, file: str):
        return self

    def load(self, runtime):
        spec = GaussianModel(path=self.path)
        return SavedGaussian(spec, Mean(spec), runtime)


@dataclass(frozen=True)
class Numbers:
    """The ``[data]`` table: prompts that know their number in the iteration; texts repeat, as a history needs."""

    score = "reward"
    captioned = True

    def prepare(self, log):
        pass

    def prompts(self, count, iteration, seed):
        images = uniform((seed, iteration, "references"), count * 3 * SIDE**2).view(count, 3, SIDE, SIDE)
        return [Prompt(f"text {(n + iteration) % 5}", {"number": n}, image) for n, image in enumerate(images)]

    def held_out(self, count, seed):
        return [Prompt(f"held out {n}", {"number": n}) for n in range(count)]

    def batch(self, count, iteration, seed):
        prompts = self.prompts(count, iteration, seed)
        return CaptionedImages(prompts, torch.stack([prompt.reference for prompt in prompts]).__getitem__)

    def held_out_images(self, count, seed):
        return self.batch(count, -1, seed)

    def measures(self, images, prompts):
        return {}

    def category(self, prompt):
        return "one"


@dataclass(frozen=True)
class Bright:
    """Brightness; prompts with a number in ``flat`` give all their images the same score."""

    flat: tuple[int, ...] = ()

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        bright = images.mean((1, 2, 3)) + images[:, 0, 0, 0]
        return torch.where(torch.tensor([prompt.metadata["number"] in self.flat for prompt in prompts]), 0.5, bright)


@dataclass(frozen=True)
class Unlike:
    """The distance to the mean image of the prompt: a reward that needs to see the whole group."""

    needs_group = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        numbers = torch.tensor([prompt.metadata["number"] for prompt in prompts])
        means = torch.stack([images[numbers == number].mean(0) for number in numbers.tolist()])
        return (images - means).square().mean((1, 2, 3))
