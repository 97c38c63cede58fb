"""HunyuanImage 2.1: quoted words, plain guidance, and what its stock pipeline and diffusers lack."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.commands.export import formats
from grpaint.commands.export.push import card
from grpaint.commands.sample.provenance import diffusers_script
from grpaint.core import CheckpointError, ConfigError, Prompt
from grpaint.core.rng import uniform
from grpaint.core.runtime import Runtime
from grpaint.recipe.deployment import with_frozen
from grpaint.rollout import Closed, Plan, roll
from grpaint.storage.files import write_weights
from tiny_pipelines import recipe, save, stock

TEXTS = ['a sign that says "open"', "a red cat", "two words, “left” and 'right'"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("hunyuan-image", tmp_path_factory.mktemp("pipelines"))


def load(folder: Path, **settings: Any) -> DiffusersPolicy:
    return Diffusers(str(folder), height=16, width=16, **settings).load(Runtime())


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_ten_steps_with_and_without_quoted_words_are_those_of_the_stock_pipeline(folder: Path, guidance: float) -> None:
    policy, pipe = load(folder, guidance=guidance), stock(folder)
    pipe.tokenizer_max_length = 300  # less padding to compute
    start = policy.noise((0, 0, "start"), range(3))
    prompts = [Prompt(text) for text in TEXTS]
    ours = roll(policy, prompts, 1, Plan(10, window=Closed()), iteration=0, seed=0).x0
    arguments = {"num_inference_steps": 10, "height": 16, "width": 16, "output_type": "latent"}
    own = pipe.guider.new(guidance_scale=guidance)
    pipe.guider = pipe.ocr_guider = ClassifierFreeGuidance(guidance_scale=guidance)
    theirs = pipe(prompt=TEXTS, latents=start, **arguments).images
    assert relative(ours, theirs) < 1e-6  # measured: 2e-7, 3e-7
    if guidance > 1:
        pipe.guider = pipe.ocr_guider = own
        assert relative(ours, pipe(prompt=TEXTS, latents=start, **arguments).images) > 1e-3  # it has a momentum
    assert type(policy.pipe.guider) is not ClassifierFreeGuidance
    policy.stock(TEXTS[:1], start[:1], 1)
    assert type(policy.pipe.guider) is type(policy.pipe.ocr_guider) is not ClassifierFreeGuidance


def test_quoted_words_are_read_by_byt5(folder: Path) -> None:
    policy = load(folder)
    cond = policy.encode([Prompt(text) for text in TEXTS])
    assert [lengths[1] > 0 for lengths in cond.parts[2][cond.index].tolist()] == [True, False, True]
    x, here = policy.noise((1,), range(3)), policy.path.grid(4)[1]
    with torch.no_grad():
        read = policy.predict(x, here, cond).x0
        cond.parts[1].zero_()
        blind = policy.predict(x, here, cond).x0
    assert torch.equal(read[1], blind[1])
    assert relative(blind[0], read[0]) > 1e-5


def test_images_are_encoded_whole_beside_tiles(folder: Path) -> None:
    images = uniform((0,), 3 * 32 * 32).view(1, 3, 32, 32)
    plain, tiled = load(folder), load(folder, vae_tiling=True)
    with torch.no_grad():
        latents = plain.encode_images(images)
        assert torch.equal(tiled.encode_images(images), latents)
        assert tiled.decode(latents).shape == images.shape
    assert tiled.pipe.vae.use_tiling


def test_what_the_pipeline_lacks_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.tokens = 64: .* Leave it out\.$"):
        load(folder, tokens=64)
    policy = load(folder, lora=Lora(4))
    with pytest.raises(ConfigError, match=r"^export --for comfyui: .*; use --for diffusers or merged\.$"):
        formats.export(policy, {}, 1, "comfyui", tmp_path / "out")
    write_weights(tmp_path / "other.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(4, 8)}, {})
    with pytest.raises(CheckpointError, match=r"lora_unet_x.*: diffusers converts no other program's names for a Huny"):
        load(folder, lora=Lora(4), start=str(tmp_path / "other.safetensors"))


def test_the_distilled_model_is_refused_before_weights(tmp_path: Path) -> None:
    config = save("hunyuan-image", tmp_path) / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_meanflow": True, "guidance_embeds": True}))
    with pytest.raises(ConfigError, match=r"use_meanflow = true: this distilled model .* Use the base model, Hun.*\.$"):
        _ = Diffusers(str(tmp_path / "hunyuan-image")).path


def test_a_snippet_and_a_card_load_the_adapter_into_the_network(folder: Path, tmp_path: Path) -> None:
    original = recipe(folder, guidance=3.5)
    policy = original.model.load(Runtime())
    assert isinstance(policy, DiffusersPolicy)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    write_weights(tmp_path / "lora.safetensors", *policy.export("current"))
    settings = with_frozen(original.evaluate, ())
    script = diffusers_script(policy, settings, "a cat", 0, tmp_path / "lora.safetensors")
    assert f"pipe.guider = pipe.ocr_guider = ClassifierFreeGuidance(guidance_scale={settings.guidance!r})\n" in script
    lines, names = script.replace('image.save("image.png")\n', "").partition("image = pipe(")[0], {}
    exec(lines, names)
    start = names["latents"]
    pipe = names["pipe"]
    pipe.set_progress_bar_config(disable=True)
    pipe.guider = pipe.ocr_guider = ClassifierFreeGuidance(guidance_scale=3.5)
    theirs = pipe("a cat", latents=start, num_inference_steps=2, height=16, width=16, output_type="latent").images
    assert relative(theirs, policy.stock(["a cat"], start, 2)) < 1e-5
    with policy.weights.use("reference"):
        assert relative(theirs, policy.stock(["a cat"], start, 2)) > 1e-3
    about = {"base": "me/base", "base_sha256": "0", "family": "hunyuan-image", "license": None, "recipe": {}}
    assert 'pipe.transformer.load_lora_adapter("me/tuned")' in card(
        "me/tuned", "diffusers", about, [], policy.family.lora_loader
    )
