"""Qwen-Image 2.1: captions of one length a call, the folder's own levels, and images with opacity."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.backends.embeddings import text_parts_hash
from grpaint.commands.sample.provenance import diffusers_script
from grpaint.core import ConfigError, Prompt
from grpaint.core.rng import uniform
from grpaint.core.runtime import Runtime
from grpaint.recipe.deployment import with_frozen
from grpaint.rollout import Closed, Plan, roll
from grpaint.storage.files import write_weights
from tiny_pipelines import recipe, save, stock

TEXTS = ["a red cat", "two blue dogs in the snow", "a cat red", "", "a < b"]
RESULTS = ("latents", "image")  # of a snippet
SIGMAS = [1.0, 0.8, 0.45]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen-image-2.1", tmp_path_factory.mktemp("pipelines"))


def load(folder: Path, **settings: Any) -> DiffusersPolicy:
    return Diffusers(str(folder), height=32, width=64, **settings).load(Runtime())


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_ten_steps_of_captions_of_other_lengths_are_those_of_the_stock_pipeline(folder: Path, guidance: float) -> None:
    policy, pipe = load(folder, guidance=guidance), stock(folder)
    start = policy.noise((0, 0, "start"), range(len(TEXTS)))
    ours = roll(policy, [Prompt(text) for text in TEXTS], 1, Plan(10, window=Closed()), iteration=0, seed=0).x0
    words = {"height": 32, "width": 64, "num_inference_steps": 10, "output_type": "latent", "true_cfg_scale": guidance}
    for row, text in enumerate(TEXTS):
        negative = {"negative_prompt": ""} if guidance > 1 else {}
        packed = start[row : row + 1].flatten(2).transpose(1, 2)
        theirs = pipe(prompt=text, latents=packed, **words, **negative).images
        assert relative(ours[row : row + 1].flatten(2).transpose(1, 2), theirs) < 1e-6  # measured: 2e-7, 3e-7


def test_padding_would_change_the_image_so_a_call_takes_captions_of_one_length(folder: Path) -> None:
    policy = load(folder)
    lengths: list[int] = []
    watch: Any = lambda _m, _a, words: lengths.append(words["encoder_hidden_states"].shape[1])  # noqa: E731
    policy.pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    x, here = policy.noise((1,), range(len(TEXTS))), policy.path.grid(4)[1]
    with torch.no_grad():
        policy.predict(x, here, policy.encode([Prompt(text) for text in TEXTS]))
    assert lengths == sorted(set(lengths))
    assert len(lengths) == 4  # two captions are of one length
    assert policy.meter.counts["training"] == len(TEXTS)
    pipe = stock(folder)
    start = policy.family.to_stock(x[:2])
    words = {"height": 32, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    together = pipe(prompt=TEXTS[:2], latents=start, **words).images
    alone = pipe(prompt=TEXTS[0], latents=start[:1], **words).images
    assert relative(together[:1], alone) > 1e-5  # the stock pipeline pads


def test_levels_that_the_folder_lists_are_those_of_its_steps(folder: Path, tmp_path: Path) -> None:
    save("qwen-image-2.1", tmp_path)
    index = tmp_path / "qwen-image-2.1/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_sigmas": SIGMAS}))
    policy, own = load(index.parent), load(folder)
    start = policy.noise((0, 0, "start"), range(2))
    prompts = [Prompt(text) for text in TEXTS[:2]]
    ours = roll(policy, prompts, 1, Plan(3, window=Closed()), iteration=0, seed=0).x0
    assert relative(ours, policy.stock(TEXTS[:2], start, 3)) < 1e-6
    assert relative(ours, own.stock(TEXTS[:2], start, 3)) > 1e-2
    assert relative(ours, load(folder, sigmas=tuple(SIGMAS)).stock(TEXTS[:2], start, 3)) < 1e-6
    assert len(load(index.parent, sigmas=(1.0, 0.5)).path.grid(2)) == 3
    with pytest.raises(ValueError, match="steps must be 3"):
        policy.path.grid(10)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_sigmas": SIGMAS[::-1]}))
    with pytest.raises(ConfigError, match=r"model_index\.json: sample_sigmas = \[0\.45, 0\.8, 1\.0\]: they must fall"):
        _ = Diffusers(str(index.parent)).path


def test_images_lie_on_white_and_opaque_ones_are_encoded(folder: Path) -> None:
    policy, pipe = load(folder), stock(folder)
    start = policy.noise((1,), range(1))
    words = {"height": 32, "width": 64, "num_inference_steps": 2}
    theirs = pipe(prompt="a red cat", latents=policy.family.to_stock(start), output_type="pt", **words).images
    opacity = theirs[:, 3:]
    assert opacity.shape == (1, 1, 32, 64)
    assert 0 < opacity.mean() < 1
    white = opacity * theirs[:, :3] + (1 - opacity)
    images = uniform((0,), 3 * 32 * 64).view(1, 3, 32, 64)
    mean, std = (torch.tensor(getattr(pipe.vae.config, f"latents_{name}")).view(1, 4, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(policy.decode(policy.stock(["a red cat"], start, 2)), white, rtol=0, atol=1e-5)
        opaque = torch.cat([images * 2 - 1, torch.ones(1, 1, 32, 64)], dim=1)
        latents = pipe.vae.encode(opaque[:, :, None]).latent_dist.mode()[:, :, 0]
        torch.testing.assert_close(policy.encode_images(images) * std + mean, latents)


def test_a_cached_embedding_depends_on_the_processor(folder: Path, tmp_path: Path) -> None:
    save("qwen-image-2.1", tmp_path)
    file = tmp_path / "qwen-image-2.1/processor/chat_template.jinja"
    before = text_parts_hash(Diffusers(str(tmp_path / "qwen-image-2.1")).origin)
    assert before == text_parts_hash(Diffusers(str(folder)).origin)
    file.write_text(file.read_text() + " ")
    assert text_parts_hash(Diffusers(str(tmp_path / "qwen-image-2.1")).origin) != before


def test_how_much_of_a_caption_is_read_is_no_setting(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.tokens = 64: .* Leave it out\.$"):
        load(folder, tokens=64)


def test_a_snippet_draws_the_same_picture(folder: Path, tmp_path: Path) -> None:
    settings = with_frozen(replace(recipe(folder).evaluate, steps=4, guidance=3.5), ())
    policy = recipe(folder, guidance=settings.guidance).model.load(Runtime())
    assert isinstance(policy, DiffusersPolicy)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    write_weights(tmp_path / "lora.safetensors", *policy.export("current"))
    script = diffusers_script(policy, settings, "a cat", 0, tmp_path / "lora.safetensors")
    names: dict[str, Any] = {}
    ending = ').images[0]\nimage.save("image.png")\n'
    assert script.endswith(ending)
    exec(script.removesuffix(ending) + "    output_type='latent',\n).images", names)
    start, theirs = (policy.family.from_stock(policy.pipe, names[name], policy.noise((0,), [0])) for name in RESULTS)
    assert relative(theirs, policy.stock(["a cat"], start, settings.steps)) < 1e-5
    with policy.weights.use("reference"):
        assert relative(theirs, policy.stock(["a cat"], start, settings.steps)) > 1e-3
