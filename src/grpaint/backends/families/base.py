"""The base class of pipeline families, with what most of them have in common."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import diffusion_parametrisation, diffusion_path, flow_path, stock_ode
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.path import Path
from grpaint.core.prediction import Parametrisation

# the layers of joint attention to text and image, which get adapters in Flow-GRPO
JOINT = tuple(
    f"attn.{layer}"
    for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
MOST_WINDOW = 100_000  # more positions than any CLIP encoder has; transformers gives 1e30 where none are stated
PACKING = """b, c, h, w = latents.shape
latents = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
latents = latents.reshape(b, h * w // 4, 4 * c)
"""
Guidance = Literal["none", "cfg", "distilled"]


class Family(ABC):
    """What differs between diffusers pipelines. A family has no state; ``pipe`` is the opened pipeline.

    A new family defines ``path``, ``encode`` and ``call``, and overrides the defaults that do not fit. Methods that
    take a ``folder`` run before weights are opened, and read its JSON files alone.

    Terms: the *stock pipeline* is diffusers' own; a *latent side* is a height or width of the VAE's latents.
    """

    PIPELINE: ClassVar[str]  # the class in model_index.json
    ALIASES: ClassVar[tuple[str, ...]] = ()  # other classes whose folders PIPELINE opens as well
    NETWORK: ClassVar[str] = "transformer"  # the part of the pipeline that is trained
    TARGETS: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")  # endings of the layers with adapters
    WITHOUT: ClassVar[dict[str, Any]] = {}  # parts that the pipeline is opened without
    PATCH: ClassVar[int] = 1  # latent sides are divisible by it: the side of the network's patches
    MOST_TOKENS: ClassVar[int] = 0  # the most that the stock pipeline accepts; 0: any number
    FIXED_TOKENS: ClassVar[bool] = False  # whether it cannot be chosen how much of a caption the stock pipeline reads
    ONE_LENGTH: ClassVar[bool] = False  # whether padding a caption changes the image: a call then takes equal lengths
    GUIDERS: ClassVar[tuple[str, ...]] = ()  # its parts that apply guidance; `stock` puts plain guidance there
    LOADS_LORA: ClassVar[bool] = True  # whether the stock pipeline loads a LoRA; otherwise its network does
    SKIPS_CLIP: ClassVar[bool] = False  # whether ``encode`` follows the setting ``clip_skip``
    PACKED: ClassVar[int] = 1  # latents that the network takes as the channels of one token

    @abstractmethod
    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        """The noising path of the scheduler's settings, for latents of the shape ``latent``.

        Raises:
            ConfigError: if no path can express them.
        """

    def parametrisation(self, folder: PipelineFolder) -> Parametrisation:
        """What the network's raw output means."""
        return "velocity"

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        """The kinds of guidance that the model supports."""
        return "none", "cfg"

    def latent_shape(self, folder: PipelineFolder, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for an image of ``height`` x ``width`` pixels; 0 is the model's own size."""
        network = folder.settings(f"{self.NETWORK}/config.json")
        return network["in_channels"], *self.sides(folder, height, width, network["sample_size"])

    def factor(self, folder: PipelineFolder) -> int:
        """The number of pixels per latent, along each side."""
        return int(2 ** (len(folder.settings("vae/config.json")["block_out_channels"]) - 1))

    def sides(self, folder: PipelineFolder, height: int, width: int, own: int | Sequence[int]) -> tuple[int, int]:
        """Return the latent height and width of an image of ``height`` x ``width`` pixels; a side of 0 gives ``own``.

        ``own`` is the network's native latent side, or its height and width.

        Raises:
            ConfigError: a side is not divisible by the pixels of a patch.
        """
        factor = self.factor(folder)
        for key, pixels in (("height", height), ("width", width)):
            multiple = factor * self.PATCH
            if pixels % multiple:
                raise ConfigError(f"model.{key} = {pixels}: this model's images have sides divisible by {multiple}.")
        own_height, own_width = (own, own) if isinstance(own, int) else own
        return height // factor or own_height, width // factor or own_width

    def idle(self, network: Any) -> tuple[str, ...]:
        """Prefixes of the names of layers that no gradient can reach; they are not trained."""
        return ()

    def prepare(self, network: Any, *, fake: bool) -> None:  # noqa: B027 (most networks are trainable as they are)
        """Make the opened network trainable, if its class is not; ``fake``: it has shapes but no contents."""

    @abstractmethod
    def encode(self, pipe: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
        """Encode captions for the network, as tensors with one row per caption.

        If the encodings differ in length, dimension 1 is padded with zeros, and the last tensor holds the lengths, on
        the CPU. ``tokens``: how many of a caption are read; 0 is as many as the stock pipeline reads.
        """

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        """The tokenizer of the encoder that reads most of a caption, and how many tokens fit; None if unknown."""
        return None

    @abstractmethod
    def call(self, pipe: Any, x: Tensor, t: Tensor, cond: tuple[Tensor, ...], guidance: float) -> Tensor:
        """The network's raw output at path times ``t`` ``[b]``; ``guidance`` is an input of distilled models alone."""

    def combine(self, unconditional: Tensor, conditional: Tensor, weight: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022)."""
        return unconditional + weight * (conditional - unconditional)

    def arguments(self, guidance: float, kind: Guidance) -> dict[str, Any]:
        """Arguments with which the stock pipeline applies the same guidance."""
        return {"guidance_scale": guidance}

    def length(self, tokens: int) -> dict[str, Any]:
        """Arguments with which the stock pipeline and its encoder read as many tokens."""
        return {"max_sequence_length": tokens} if tokens else {}

    @property
    def lora_loader(self) -> str:
        """The call in a script that loads a LoRA into the stock pipeline ``pipe``."""
        return "pipe.load_lora_weights" if self.LOADS_LORA else f"pipe.{self.NETWORK}.load_lora_adapter"

    @property
    def packs(self) -> bool:
        """Whether the stock pipeline takes and returns latents in the layout of :func:`pack`."""
        return self.PACKED > 1

    @property
    def packing(self) -> str:
        """The lines of a script that convert ``latents`` to the layout of the stock pipeline, like :meth:`to_stock`."""
        return PACKING if self.packs else ""

    def stock_ode(self, scheduler: Any, path: Path) -> tuple[str, dict[str, Any]] | None:
        """The scheduler class of diffusers and the changed settings that take the ODE's steps on ``path``.

        None if the stock pipeline's own ``scheduler`` does.
        """
        return stock_ode(scheduler, path)

    def stock_settings(self, pipe: Any, height: int, width: int) -> dict[str, Any]:
        """Attributes with which the stock pipeline samples images of this size, if it would change the size."""
        return {}

    def to_stock(self, latents: Tensor) -> Tensor:
        """Convert latents to the layout of the stock pipeline."""
        return pack(latents) if self.packs else latents

    def from_stock(self, pipe: Any, latents: Tensor, like: Tensor) -> Tensor:
        """Convert latents of the stock pipeline to the shape of ``like``."""
        return unpack(latents, like) if self.packs else latents

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents to images in about [-1, 1]."""
        mean, scale = _latent_moments(pipe.vae, latents)
        return pipe.vae.decode(latents * scale + mean, return_dict=False)[0]

    def encode_images(self, pipe: Any, images: Tensor) -> Tensor:
        """Encode images in [-1, 1] as the mean of their latents, without sampling."""
        latents = pipe.vae.encode(images).latent_dist.mode()
        mean, scale = _latent_moments(pipe.vae, latents)
        return (latents - mean) / scale


class Diffusion(Family):
    """A U-Net on a variance-preserving path, whose CLIP encoders read captions in windows of 77 tokens."""

    NETWORK = "unet"
    SKIPS_CLIP = True

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        return diffusion_path(folder)

    def parametrisation(self, folder: PipelineFolder) -> Parametrisation:
        return diffusion_parametrisation(folder)

    def guidance(self, folder: PipelineFolder) -> tuple[Guidance, ...]:
        return ("distilled",) if folder.settings("unet/config.json").get("time_cond_proj_dim") else ("none", "cfg")

    def length(self, tokens: int) -> dict[str, Any]:
        return {}  # the stock pipeline always reads 75

    def room(self, pipe: Any, tokens: int) -> tuple[Any, int] | None:
        return pipe.tokenizer, window_length(pipe.tokenizer) * window_count(pipe.tokenizer, tokens)


class ScaledFlow(Family):
    """A flow over patches of 2 x 2 latents, with images of 1024 pixels; its schedule may depend on the image's size."""

    PATCH = 2

    def path(self, folder: PipelineFolder, latent: tuple[int, ...]) -> Path:
        return flow_path(folder, "linear", latent[-2] * latent[-1] // 4)

    def latent_shape(self, folder: PipelineFolder, height: int, width: int) -> tuple[int, ...]:
        network = folder.settings("transformer/config.json")
        return network["in_channels"] // self.PACKED, *self.sides(folder, height, width, 1024 // self.factor(folder))


def guidance_embedding(pipe: Any, x: Tensor, guidance: float) -> Tensor | None:
    """What the U-Net of a latent consistency model is given of the guidance, ``[b, d]``; None for another U-Net."""
    width = pipe.unet.config.time_cond_proj_dim
    if not width:
        return None
    return pipe.get_guidance_scale_embedding(torch.full((len(x),), guidance - 1.0), embedding_dim=width).to(x)


def _latent_moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of a VAE's latents: per channel if its settings have them, else one number each."""
    settings = vae.config
    mean, std = getattr(settings, "latents_mean", None), getattr(settings, "latents_std", None)
    scale = 1 / getattr(settings, "scaling_factor", 1.0)
    if mean is None or std is None:
        return like.new_tensor(getattr(settings, "shift_factor", None) or 0.0), like.new_tensor(scale)
    shape = (1, -1, *(1,) * (like.ndim - 2))
    return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape) * scale


def window_length(tokenizer: Any) -> int:
    """The number of a caption's tokens in a window, without the begin and end marks.

    Raises:
        CheckpointError: if the tokenizer's settings are missing, or do not say how many its encoder takes.
    """
    folder, length = tokenizer.name_or_path, tokenizer.model_max_length
    if os.path.isdir(folder) and not os.path.isfile(f"{folder}/tokenizer_config.json"):
        raise CheckpointError(f"{folder}: no tokenizer_config.json of a tokenizer there. Copy the tokenizer again.")
    if not isinstance(length, int | float) or not 2 < length <= MOST_WINDOW:
        problem = (
            f"model_max_length = {length!r:.40}" if isinstance(length, str) or length <= 2 else "no model_max_length"
        )
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: {problem}. Set it to max_position_embeddings of the text encoder's "
            "config.json (77 for CLIP)."
        )
    return int(length) - 2


def window_count(tokenizer: Any, tokens: int) -> int:
    """The number of windows that ``tokens`` need."""
    return max(1, -(-tokens // window_length(tokenizer)))


def windows(tokenizer: Any, texts: list[str], tokens: int) -> Tensor:
    """Token ids ``[b, n, 77]``: captions cut into windows, each with its begin and end marks.

    One window holds the same ids as in the stock pipelines; unused windows are padded like an empty caption.
    """
    length, count = window_length(tokenizer), window_count(tokenizer, tokens)
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids:
        for first in range(0, count * length, length):
            row = [tokenizer.bos_token_id, *ids[first : first + length], tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (length + 2 - len(row)))
    return torch.tensor(rows).view(len(texts), count, length + 2)


def chat_length(tokenizer: Any, chat: list[dict[str, Any]], **settings: Any) -> int:
    """The number of tokens of a chat under the tokenizer's template; ``settings`` are those of the template."""
    text = tokenizer.apply_chat_template(chat, tokenize=False, **settings)
    return len(getattr(tokenizer, "tokenizer", tokenizer)(text).input_ids)  # a processor contains a tokenizer


def pack(latents: Tensor) -> Tensor:
    """Turn latents ``[b, c, h, w]`` into tokens ``[b, h/2 * w/2, 4c]``, one per patch of 2 x 2."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`pack`; the latents have the shape of ``like``."""
    b, c, h, w = like.shape
    return tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
