"""Every scorer against its published architecture, written out here, on the same tensors in their original layout.

The references begin at Pillow pictures, so that preprocessing is held to the originals' too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from grpaint.core import CheckpointError, Prompt
from grpaint.rewards.aesthetic import Aesthetic
from grpaint.rewards.clip import ClipScore, PickScore
from grpaint.rewards.hps import Hps
from grpaint.rewards.image_reward import ImageReward
from grpaint.rewards.lpips import LpipsToReference
from grpaint.rewards.model import ModelReward
from grpaint.vision.clip import load_clip_network
from grpaint.vision.lpips import Lpips
from tiny_scorers import (
    TEXTS,
    as_pil,
    bert_tokenizer,
    clip_folder,
    clip_tokenizer,
    from_pil,
    head_tensors,
    image_reward_tensors,
    lpips_tensors,
    open_clip_tensors,
    pictures,
    resized_by_pillow,
)

PROMPTS = [Prompt(text) for text in TEXTS]
Get = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny weights, in files of their published names."""
    folder = tmp_path_factory.mktemp("scorers")
    clip_folder(folder / "clip")
    clip_tokenizer(folder / "tokens")
    bert_tokenizer(folder / "bert")
    torch.save({"epoch": 3, "state_dict": open_clip_tensors()}, folder / "HPS_v2.1_compressed.pt")
    torch.save(head_tensors(16), folder / "aesthetic-model.pth")
    torch.save(image_reward_tensors(), folder / "ImageReward.pt")
    for name, tensors in zip(("alexnet-owt-7be5be79.pth", "alex.pth"), lpips_tensors(), strict=True):
        torch.save(tensors, folder / name)
    return folder


# The published architectures.


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def linear(get: Get, name: str, x: Tensor) -> Tensor:
    return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))


def norm(get: Get, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), eps)


def causal(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


def patches(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def open_clip_block(get: Get, at: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    y = norm(get, f"{at}.ln_1", x)
    q, k, v = F.linear(y, get(f"{at}.attn.in_proj_weight"), get(f"{at}.attn.in_proj_bias")).chunk(3, -1)
    x = x + linear(get, f"{at}.attn.out_proj", attend(q, k, v, heads, mask))
    return x + linear(get, f"{at}.mlp.c_proj", F.gelu(linear(get, f"{at}.mlp.c_fc", norm(get, f"{at}.ln_2", x))))


def open_clip(tensors: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    get = tensors.__getitem__
    x = patches(pixels, get("visual.conv1.weight"))
    x = torch.cat([get("visual.class_embedding").expand(len(x), 1, -1), x], 1) + get("visual.positional_embedding")
    x = norm(get, "visual.ln_pre", x)
    for block in range(2):
        x = open_clip_block(get, f"visual.transformer.resblocks.{block}", x, 2, None)
    image = norm(get, "visual.ln_post", x[:, 0]) @ get("visual.proj")
    y = get("token_embedding.weight")[ids] + get("positional_embedding")
    for block in range(2):
        y = open_clip_block(get, f"transformer.resblocks.{block}", y, 2, causal(77))
    y = norm(get, "ln_final", y)
    return image, y[torch.arange(len(y)), ids.argmax(1)] @ get("text_projection")


def clip_block(get: Get, at: str, x: Tensor, mask: Tensor | None) -> Tensor:
    y = norm(get, f"{at}.layer_norm1", x)
    q, k, v = (linear(get, f"{at}.self_attn.{letter}_proj", y) for letter in "qkv")
    x = x + linear(get, f"{at}.self_attn.out_proj", attend(q, k, v, 2, mask))
    y = linear(get, f"{at}.mlp.fc1", norm(get, f"{at}.layer_norm2", x))
    return x + linear(get, f"{at}.mlp.fc2", y * torch.sigmoid(1.702 * y))  # OpenAI's quick GELU


def clip(tensors: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    get, at = tensors.__getitem__, "vision_model.embeddings"
    x = patches(pixels, get(f"{at}.patch_embedding.weight"))
    x = torch.cat([get(f"{at}.class_embedding").expand(len(x), 1, -1), x], 1) + get(f"{at}.position_embedding.weight")
    x = norm(get, "vision_model.pre_layrnorm", x)
    for layer in range(2):
        x = clip_block(get, f"vision_model.encoder.layers.{layer}", x, None)
    image = norm(get, "vision_model.post_layernorm", x[:, 0]) @ get("visual_projection.weight").T
    at = "text_model.embeddings"
    y = get(f"{at}.token_embedding.weight")[ids] + get(f"{at}.position_embedding.weight")
    for layer in range(2):
        y = clip_block(get, f"text_model.encoder.layers.{layer}", y, causal(ids.shape[1]))
    y = norm(get, "text_model.final_layer_norm", y)
    return image, y[torch.arange(len(y)), ids.argmax(1)] @ get("text_projection.weight").T


def blip(tensors: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    get: Get = lambda name: tensors[f"blip.visual_encoder.{name}"]  # noqa: E731
    x = patches(pixels, get("patch_embed.proj.weight"), get("patch_embed.proj.bias"))
    x = torch.cat([get("cls_token").expand(len(x), -1, -1), x], 1) + get("pos_embed")
    for block in range(2):
        at = f"blocks.{block}"
        q, k, v = linear(get, f"{at}.attn.qkv", norm(get, f"{at}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(get, f"{at}.attn.proj", attend(q, k, v, 2))
        y = F.gelu(linear(get, f"{at}.mlp.fc1", norm(get, f"{at}.norm2", x, 1e-6)))
        x = x + linear(get, f"{at}.mlp.fc2", y)
    seen = norm(get, "norm", x, 1e-6)
    word: Get = lambda name: tensors[f"blip.text_encoder.{name}"]  # noqa: E731
    y = word("embeddings.word_embeddings.weight")[ids] + word("embeddings.position_embeddings.weight")[: ids.shape[1]]
    y = norm(word, "embeddings.LayerNorm", y, 1e-12)
    hidden = (1.0 - mask.float())[:, None, None] * torch.finfo(torch.float32).min
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        for kind, over, bar in (("attention", None, hidden), ("crossattention", seen, None)):
            source = y if over is None else over
            q = linear(word, f"{at}.{kind}.self.query", y)
            k, v = (linear(word, f"{at}.{kind}.self.{name}", source) for name in ("key", "value"))
            read = linear(word, f"{at}.{kind}.output.dense", attend(q, k, v, 1, bar))
            y = norm(word, f"{at}.{kind}.output.LayerNorm", read + y, 1e-12)
        wide = F.gelu(linear(word, f"{at}.intermediate.dense", y))
        y = norm(word, f"{at}.output.LayerNorm", linear(word, f"{at}.output.dense", wide) + y, 1e-12)
    head = {name.removeprefix("mlp."): tensor for name, tensor in tensors.items() if name.startswith("mlp.")}
    return (linear_head(head, y[:, 0]) - 0.16717362830052426) / 1.0333394966054072


def linear_head(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    for number in (0, 2, 4, 6, 7):
        x = linear(tensors.__getitem__, f"layers.{number}", x)
    return x[:, 0]


def lpips(alexnet: dict[str, Tensor], heads: dict[str, Tensor], images: Tensor, others: Tensor) -> Tensor:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def maps(x: Tensor) -> list[Tensor]:
        x, out = (2 * x - 1 - shift.view(3, 1, 1)) / scale.view(3, 1, 1), []
        for number, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if number in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = alexnet[f"features.{number}.weight"], alexnet[f"features.{number}.bias"]
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            out.append(x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10))
        return out

    pairs = zip(maps(images), maps(others), strict=True)
    parts = [((a - b) ** 2 * heads[f"lin{n}.model.1.weight"]).sum(1).mean((1, 2)) for n, (a, b) in enumerate(pairs)]
    return torch.stack(parts).sum(0)


# How the originals bring a picture to their size.


def resize_and_cut(image: Tensor, side: int = 28, *, torchvision: bool = False) -> Tensor:
    picture = as_pil(image)
    width, height = picture.size
    short = min(width, height)
    picture = resized_by_pillow(picture, int(side * width / short), int(side * height / short))
    over = (picture.width - side, picture.height - side)
    left, top = (round(x / 2.0) if torchvision else x // 2 for x in over)
    return from_pil(picture.crop((left, top, left + side, top + side)))


def resize_and_pad(image: Tensor, side: int = 28) -> Tensor:
    picture = as_pil(image)
    scale = side / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    page = Image.new("RGB", (side, side))
    page.paste(resized_by_pillow(picture, *size), ((side - size[0]) // 2, (side - size[1]) // 2))
    return from_pil(page)


def numbers(folder: Path, length: int) -> tuple[Tensor, Tensor]:
    made = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return made["input_ids"], made["attention_mask"]


def cosine(image: Tensor, text: Tensor) -> Tensor:
    return F.cosine_similarity(image, text)


# What is tested.


SIZES = [(40, 56), (56, 31), (20, 20)]


@pytest.mark.parametrize("size", SIZES)
def test_clip_score_and_pick_score(here: Path, size: tuple[int, int]) -> None:
    images, (ids, _) = pictures(*size), numbers(here / "clip", 20)
    pixels = torch.stack([resize_and_cut(image) for image in images])
    expected = cosine(*clip(load_file(here / "clip/model.safetensors"), pixels, ids))
    settings = {"weights": str(here / "clip"), "tokenizer": str(here / "clip")}
    scores = ClipScore(**settings, batch=3)(images, PROMPTS)
    torch.testing.assert_close(scores, 100 * expected, atol=1e-4, rtol=0)
    pick = PickScore(**settings)(images, PROMPTS)
    torch.testing.assert_close(pick, expected * torch.tensor(2.0).exp(), atol=1e-4, rtol=0)
    assert scores.std() > 1  # it tells them apart


@pytest.mark.parametrize("size", SIZES)
def test_hps(here: Path, size: tuple[int, int]) -> None:
    images, (ids, _) = pictures(*size), numbers(here / "tokens", 77)
    pixels = torch.stack([resize_and_pad(image) for image in images])
    expected = cosine(*open_clip(open_clip_tensors(), pixels, ids))
    scores = Hps(weights=str(here), tokenizer=str(here / "tokens"), batch=3)(images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert scores.std() > 0.01


@pytest.mark.parametrize("size", SIZES)
def test_image_reward(here: Path, size: tuple[int, int]) -> None:
    images, (ids, mask) = pictures(*size), numbers(here / "bert", 35)
    pixels = torch.stack([resize_and_cut(image, torchvision=True) for image in images])
    expected = blip(image_reward_tensors(), pixels, ids, mask)
    scores = ImageReward(weights=str(here / "ImageReward.pt"), tokenizer=str(here / "bert"), batch=3)(images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert scores.std() > 0.01


@pytest.mark.parametrize("size", SIZES)
def test_the_aesthetic_predictor_shares_its_clip(here: Path, size: tuple[int, int]) -> None:
    images, (ids, _) = pictures(*size), numbers(here / "clip", 20)
    pixels = torch.stack([resize_and_cut(image) for image in images])
    seen, _ = clip(load_file(here / "clip/model.safetensors"), pixels, ids)
    expected = linear_head(head_tensors(16), F.normalize(seen, dim=1))
    before = load_clip_network.cache_info().misses
    settings = {"weights": str(here / "clip"), "tokenizer": str(here / "clip")}
    ClipScore(**settings)(images, PROMPTS)
    scores = Aesthetic(weights=str(here), clip=str(here / "clip"))(images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert load_clip_network.cache_info().misses <= before + 1


@pytest.mark.parametrize("size", [(40, 56), (64, 64), (32, 32)])
def test_lpips(here: Path, size: tuple[int, int]) -> None:
    images, others = pictures(*size), pictures(*size).roll(1, 0)
    expected = lpips(*lpips_tensors(), images, others)
    reward = LpipsToReference(weights=str(here), heads=str(here))
    prompts = [Prompt("", reference=other) for other in others]
    torch.testing.assert_close(reward(images, prompts), -expected, atol=1e-4, rtol=0)
    assert expected.min() > 0.01
    assert reward(others, prompts).abs().max() == 0
    with pytest.raises(ValueError, match="pixels"):
        reward(images[:, :, :-1], prompts)


def rewards(here: Path) -> dict[str, ModelReward]:
    clip, root = str(here / "clip"), str(here)
    return {
        "clip-score": ClipScore(weights=clip, tokenizer=clip),
        "hps": Hps(weights=root, tokenizer=str(here / "tokens")),
        "image-reward": ImageReward(weights=root, tokenizer=str(here / "bert")),
        "aesthetic": Aesthetic(weights=root, clip=clip),
        "lpips": LpipsToReference(weights=root, heads=root),
    }


def tensors_of(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    stored = torch.load(file, weights_only=True)
    return stored.get("state_dict", stored)


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors} if "HPS" in file.name else tensors, file)


@pytest.mark.parametrize("name", ["clip-score", "hps", "image-reward", "aesthetic", "lpips"])
def test_every_key_is_used_and_none_is_left(here: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = Path(shutil.copytree(here, tmp_path / "copy"))
    reward = rewards(folder)[name]
    images = pictures(40, 40)
    prompts = [Prompt("a red circle", reference=image) for image in images]
    file = next(iter(reward.files()))
    whole = tensors_of(file)
    not_read = ("classifier.", "blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
    for number, key in enumerate(sorted(key for key in whole if not key.startswith(not_read))):
        if number % 9 and name != "aesthetic":  # a sample of the many that are alike
            continue
        _refused(reward, file, {k: v for k, v in whole.items() if k != key}, images, prompts)
    _refused(reward, file, whole | {"another.weight": torch.ones(2)}, images, prompts)


def _refused(
    reward: ModelReward, file: Path, tensors: dict[str, Tensor], images: Tensor, prompts: Sequence[Prompt]
) -> None:
    from grpaint.rewards import aesthetic
    from grpaint.vision import clip, image_text, lpips, open_clip

    loads = (
        aesthetic.load_head,
        clip.load_clip_network,
        open_clip.load_hps,
        image_text.load_image_reward,
        lpips.load_lpips,
    )
    for load in loads:
        load.cache_clear()
    write(file, tensors)
    with pytest.raises(CheckpointError, match=file.name) as refusal:
        reward(images, prompts)
    assert "\n" not in str(refusal.value)


def test_captions_that_are_too_long_are_cut_before_their_end_token_and_counted(here: Path) -> None:
    images = pictures(40, 40, 2)
    for reward, room in (
        (rewards(here)["clip-score"], 18),
        (rewards(here)["hps"], 75),
        (rewards(here)["image-reward"], 33),
    ):
        fits, longer, longest = (Prompt(" ".join(["a"] * count)) for count in (room, room + 1, room + 30))
        assert reward.truncated([fits, longer, longest, fits]) == 2
        one, other, third = (reward(images, [prompt] * 2) for prompt in (fits, longer, longest))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # the same words remain, and the end token
        torch.testing.assert_close(one, third, atol=1e-5, rtol=0)
    assert rewards(here)["lpips"].truncated([fits]) is None


def test_half_precision_is_near(here: Path) -> None:
    images = pictures(40, 40)
    settings = {"weights": str(here / "clip"), "tokenizer": str(here / "clip")}
    whole, half = (ClipScore(**settings, precision=p)(images, PROMPTS) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (whole - half).abs().max() < 3


def test_places_without_features_are_finite_in_half_precision() -> None:
    alexnet, heads = lpips_tensors()
    dark = {
        name: tensor if name.endswith("weight") else tensor - 9 for name, tensor in alexnet.items()
    }  # all maps are 0
    for dtype in (torch.float32, torch.float16):
        maps = Lpips(dark, heads, [Path("a"), Path("b")]).to("cpu", dtype).maps(pictures(64, 64))
        assert all(not seen.isnan().any() for seen in maps)
        assert any(not seen.any() for seen in maps)
