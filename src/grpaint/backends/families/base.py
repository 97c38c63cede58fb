"""What a pipeline family says about itself, with what most of them have in common."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpaint.backends.families.folder import Folder
from grpaint.backends.families.schedule import as_ddim, diffusion_kind, diffusion_path, flow_path
from grpaint.core.errors import ConfigError
from grpaint.core.path import Path
from grpaint.core.prediction import Parametrisation

# the layers of transformers that attend to text and image together, as Flow-GRPO adapts them
JOINT = tuple(
    f"attn.{layer}"
    for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
Guidance = Literal["none", "cfg", "distilled"]


class Family(ABC):
    """What differs between diffusers pipelines. ``pipe`` is the opened pipeline, and a family keeps nothing itself.

    A new one says what it must (``path``, ``encode``, ``call``), and what differs from the defaults here. Everything it
    says about a model before its weights are opened, it reads from the folder's JSON files.
    """

    PIPELINE: ClassVar[str]  # the class in model_index.json
    NETWORK: ClassVar[str] = "transformer"  # the pipeline's part that is trained
    TARGETS: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")  # layers that take adapters
    WITHOUT: ClassVar[dict[str, Any]] = {}  # parts that the pipeline is opened without
    PATCH: ClassVar[int] = 1  # latents a side of what the network reads as one
    MOST_TOKENS: ClassVar[int] = 0  # that the stock pipeline lets one ask for; 0: any number
    PACKED: ClassVar[int] = 1  # latents that arrive at the network as channels of one

    @abstractmethod
    def path(self, folder: Folder, latent: tuple[int, ...]) -> Path:
        """The noising path that the scheduler's settings describe; ConfigError where no path can express them."""

    def parametrisation(self, folder: Folder) -> Parametrisation:
        """What the network's raw output means."""
        return "velocity"

    def guidance(self, folder: Folder) -> tuple[Guidance, ...]:
        """The kinds that the model can take."""
        return "none", "cfg"

    def latent_shape(self, folder: Folder, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for an image of ``height`` x ``width`` pixels; 0 stands for the model's own size."""
        network = folder.settings(f"{self.NETWORK}/config.json")
        return network["in_channels"], *self.sides(folder, height, width, network["sample_size"])

    def factor(self, folder: Folder) -> int:
        """Pixels a side of one latent."""
        return int(2 ** (len(folder.settings("vae/config.json")["block_out_channels"]) - 1))

    def sides(self, folder: Folder, height: int, width: int, own: int) -> tuple[int, int]:
        """Pixels to latent sides; ``own`` is the network's latent size.

        Raises:
            ConfigError: where a side is no whole number of latents and patches.
        """
        factor = self.factor(folder)
        for key, pixels in (("height", height), ("width", width)):
            if pixels % (factor * self.PATCH):
                whole = factor * self.PATCH
                raise ConfigError(f"model.{key} = {pixels}: this model's images have sides divisible by {whole}.")
        return height // factor or own, width // factor or own

    def idle(self, network: Any) -> tuple[str, ...]:
        """Beginnings of the names of layers that no gradient can reach; they are not trained."""
        return ()

    @abstractmethod
    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """What the network is told about captions: tensors with one row each.

        Where captions differ in length, zeros fill dimension 1, and the last tensor holds the lengths, on the CPU.
        ``tokens``: of a caption that are read, 0 for as many as the stock pipeline reads.
        """

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        """The tokenizer of the encoder that reads most of a caption, and how many of its tokens; None if not known."""
        return None

    @abstractmethod
    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """The network's raw output at path times ``t`` ``[b]``; ``guidance`` is what a distilled model is told."""

    def combine(self, free: Tensor, conditional: Tensor, weight: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022)."""
        return free + weight * (conditional - free)

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        """What the stock pipeline is called with to be guided alike."""
        return {"guidance_scale": guidance}

    def length(self, tokens: int) -> dict[str, Any]:
        """What the stock pipeline and its encoder are called with to read as many tokens."""
        return {"max_sequence_length": tokens} if tokens else {}

    @property
    def packs(self) -> bool:
        """Whether the stock pipeline takes and gives latents as :func:`pack` arranges them."""
        return self.PACKED > 1

    def deterministic(self, scheduler: Any) -> Any:
        """The scheduler whose steps are our ODE's, on the same noise levels."""
        return scheduler

    def to_stock(self, latents: Tensor) -> Tensor:
        """Latents as the stock pipeline takes them."""
        return pack(latents) if self.packs else latents

    def from_stock(self, latents: Tensor, like: Tensor) -> Tensor:
        """Latents that the stock pipeline gave, in the shape of ``like``."""
        return unpack(latents, like) if self.packs else latents

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Images in about [-1, 1]."""
        mean, scale = _spread(pipe.vae, latents)
        return pipe.vae.decode(latents * scale + mean, return_dict=False)[0]

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """The mean of the latents of images in [-1, 1]: no randomness."""
        latents = pipe.vae.encode(images).latent_dist.mode()
        mean, scale = _spread(pipe.vae, latents)
        return (latents - mean) / scale


class Diffusion(Family):
    """A U-Net on a variance-preserving path, told captions by CLIP encoders in windows of 77 tokens."""

    NETWORK = "unet"

    def path(self, folder: Folder, latent: tuple[int, ...]) -> Path:
        return diffusion_path(folder)

    def parametrisation(self, folder: Folder) -> Parametrisation:
        return diffusion_kind(folder)

    def length(self, tokens: int) -> dict[str, Any]:
        return {}  # its pipeline reads 75

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer, window(pipe.tokenizer) * window_count(pipe.tokenizer, tokens)

    def deterministic(self, scheduler: Any) -> Any:
        return as_ddim(scheduler)


class ScaledFlow(Family):
    """A flow over patches of 2 x 2 latents, whose schedule may go by the image's size; its own is 1024 pixels."""

    PATCH = 2

    def path(self, folder: Folder, latent: tuple[int, ...]) -> Path:
        return flow_path(folder, "linear", latent[-2] * latent[-1] // 4)

    def latent_shape(self, folder: Folder, height: int, width: int) -> tuple[int, ...]:
        network = folder.settings("transformer/config.json")
        return network["in_channels"] // self.PACKED, *self.sides(folder, height, width, 1024 // self.factor(folder))


def _spread(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of a VAE's latents: by channel where its file has them, else one number each."""
    settings = vae.config
    mean, std = getattr(settings, "latents_mean", None), getattr(settings, "latents_std", None)
    scale = 1 / getattr(settings, "scaling_factor", 1.0)
    if mean is None or std is None:
        return like.new_tensor(getattr(settings, "shift_factor", None) or 0.0), like.new_tensor(scale)
    shape = (1, -1, *(1,) * (like.ndim - 2))
    return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape) * scale


def window(tokenizer: Any) -> int:
    """Tokens of a caption in a window, between its begin and end marks."""
    return int(tokenizer.model_max_length) - 2


def window_count(tokenizer: Any, tokens: int) -> int:
    """How many windows hold ``tokens``."""
    return max(1, -(-tokens // window(tokenizer)))


def windows(tokenizer: Any, texts: list[str], tokens: int) -> Tensor:
    """Token ids ``[b, n, 77]``: a caption cut into windows, each with its begin and end marks.

    With one window it is what the stock pipelines make of a caption; further ones are filled like an empty caption's.
    """
    room, count = window(tokenizer), window_count(tokenizer, tokens)
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids:
        for first in range(0, count * room, room):
            row = [tokenizer.bos_token_id, *ids[first : first + room], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (room + 2 - len(row)))
    return torch.tensor(rows).view(len(texts), count, room + 2)


def pack(latents: Tensor) -> Tensor:
    """``[b, c, h, w]`` to ``[b, h/2 * w/2, 4c]``: patches of 2 x 2."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`pack`, to the shape of ``like``."""
    b, c, h, w = like.shape
    return tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
