"""Scorers' weights, tiny and random, in the layouts in which the real ones are published; and pictures to score."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "circle",
    "on",
    "blue",
    "white",
    "square",
    *LETTERS[1:],
]
TEXTS = ["a red circle", "a blue square on white", "a red circle", "a " * 60]  # one twice, one too long


def pictures(height: int = 40, width: int = 56, count: int = 4) -> Tensor:
    """Smooth and grainy at once, in eight bits."""
    draw = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 5, 7, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    grain = 0.2 * torch.rand(count, 3, height, width, generator=draw)
    return ((smooth * 0.8 + grain) * 255).round() / 255


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def resized_by_pillow(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def from_pil(picture: Image.Image) -> Tensor:
    """Normalised as CLIP wants it."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return (values - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _random(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Norms near 1, biases small, matrices that keep a signal's size."""
    draw, out = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        fan = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 100
        out[name] = torch.randn(shape, generator=draw) * fan**-0.5
        if len(shape) == 1 and name.endswith("weight"):
            out[name] += 1
    return out


def clip_tokenizer(folder: Path) -> Path:
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    return folder


def clip_folder(folder: Path, scale: float = 2.0) -> Path:
    """In transformers' layout: OpenAI's CLIP and PickScore."""
    both: dict[str, Any] = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = both | {"vocab_size": 54, "hidden_size": 24, "max_position_embeddings": 20, "eos_token_id": 53}
    vision = both | {"hidden_size": 32, "image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=scale)
    torch.manual_seed(0)
    model = CLIPModel(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(_random(shapes) | {"logit_scale": torch.tensor(scale)})
    model.save_pretrained(folder)
    return clip_tokenizer(folder)


def open_clip_tensors() -> dict[str, Tensor]:
    """ViT-H/14's names and widths of heads, with two blocks a tower."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, 128),
        "text_projection": (128, 24),
        "visual.class_embedding": (160,),
        "visual.positional_embedding": (5, 160),
        "visual.proj": (160, 24),
        "visual.conv1.weight": (160, 3, 14, 14),
        "token_embedding.weight": (54, 128),
    }
    for prefix, width in (("", 128), ("visual.", 160)):
        for block in range(2):
            at = f"{prefix}transformer.resblocks.{block}."
            shapes |= {f"{at}attn.in_proj_weight": (3 * width, width), f"{at}attn.in_proj_bias": (3 * width,)}
            for name, out, into in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 2 * width, width),
                ("mlp.c_proj", width, 2 * width),
            ):
                shapes |= {f"{at}{name}.weight": (out, into), f"{at}{name}.bias": (out,)}
            for name in ("ln_1", "ln_2"):
                shapes |= {f"{at}{name}.weight": (width,), f"{at}{name}.bias": (width,)}
    for name, width in (("ln_final", 128), ("visual.ln_pre", 160), ("visual.ln_post", 160)):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return _random(shapes) | {"logit_scale": torch.tensor(4.6)}


def head_tensors(width: int) -> dict[str, Tensor]:
    """The five linear layers of the aesthetic predictor and of ImageReward, smaller."""
    widths, shapes = [width, 12, 8, 6, 4, 1], {}
    for number, one, other in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        shapes |= {f"layers.{number}.weight": (other, one), f"layers.{number}.bias": (other,)}
    return _random(shapes, 3)


def image_reward_tensors() -> dict[str, Tensor]:
    """ImageReward.pt's names, two blocks a tower, with what its file has and nobody reads."""
    seen, read = 128, 64
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, seen),
        "pos_embed": (1, 5, seen),
        "patch_embed.proj.weight": (seen, 3, 14, 14),
        "patch_embed.proj.bias": (seen,),
        "norm.weight": (seen,),
        "norm.bias": (seen,),
    }
    for block in range(2):
        parts = (("attn.qkv", 3 * seen, seen), ("attn.proj", seen, seen), ("mlp.fc1", 96, seen), ("mlp.fc2", seen, 96))
        for name, out, into in parts:
            shapes |= {f"blocks.{block}.{name}.weight": (out, into), f"blocks.{block}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (seen,), f"blocks.{block}.{name}.bias": (seen,)}
    vision = {f"blip.visual_encoder.{name}": shape for name, shape in shapes.items()}
    text: dict[str, tuple[int, ...]] = {
        "word_embeddings.weight": (len(WORDS), read),
        "position_embeddings.weight": (40, read),
    }
    text = {f"embeddings.{name}": shape for name, shape in text.items()}
    text |= {"embeddings.LayerNorm.weight": (read,), "embeddings.LayerNorm.bias": (read,)}
    for block in range(2):
        at = f"encoder.layer.{block}."
        for kind, into in (("attention", read), ("crossattention", seen)):
            for name, width in (("query", read), ("key", into), ("value", into)):
                text |= {f"{at}{kind}.self.{name}.weight": (read, width), f"{at}{kind}.self.{name}.bias": (read,)}
            text |= _output(f"{at}{kind}.output", read, read)
        text |= {f"{at}intermediate.dense.weight": (80, read), f"{at}intermediate.dense.bias": (80,)}
        text |= _output(f"{at}output", read, 80)
    unused = {"blip.vision_proj.weight": (8, seen), "blip.vision_proj.bias": (8,), "blip.text_proj.weight": (8, read)}
    tensors = _random(vision | {f"blip.text_encoder.{name}": shape for name, shape in text.items()} | unused)
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return tensors | {f"mlp.{name}": tensor for name, tensor in head_tensors(read).items()}


def _output(at: str, width: int, into: int) -> dict[str, tuple[int, ...]]:
    norm = {f"{at}.LayerNorm.weight": (width,), f"{at}.LayerNorm.bias": (width,)}
    return norm | {f"{at}.dense.weight": (width, into), f"{at}.dense.bias": (width,)}


def bert_tokenizer(folder: Path) -> Path:
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def lpips_tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """AlexNet's names with narrower maps, its classifier with it, and the five heads, which are not negative."""
    widths, kernels = (3, 8, 10, 12, 12, 6), (11, 5, 3, 3, 3)
    shapes: dict[str, tuple[int, ...]] = {"classifier.1.weight": (4, 6), "classifier.1.bias": (4,)}
    for place, number in enumerate((0, 3, 6, 8, 10)):
        shapes[f"features.{number}.weight"] = (widths[place + 1], widths[place], kernels[place], kernels[place])
        shapes[f"features.{number}.bias"] = (widths[place + 1],)
    heads = {f"lin{n}.model.1.weight": (1, width, 1, 1) for n, width in enumerate(widths[1:])}
    return _random(shapes), {name: tensor.abs() for name, tensor in _random(heads, 1).items()}
