"""Images of any size that is whole patches: what aspect-ratio buckets ask of the backend."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.core import ConfigError, Prompt
from grpaint.core.rng import uniform
from grpaint.core.runtime import Runtime
from grpaint.judge import captioned, natural_loss
from tiny_pipelines import TOKENS, save

BUCKETS = [(16, 24), (20, 16)]
NAMES = ["sdxl", "sd3", "flux-dev", "qwen-image", "z-image"]
LATER = ["chroma", "flux2-klein-base", "krea2", "lumina2", "sana", "kolors", "hidream", "hunyuan-image"]
PROMPTS = [Prompt("a red cat"), Prompt("two blue dogs"), Prompt("")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: save(name, root) for name in NAMES + LATER}


def load(folder: Path, height: int, width: int) -> DiffusersPolicy:
    tokens = {"tokens": TOKENS[folder.name]} if folder.name in TOKENS else {}
    spec = Diffusers(str(folder), height=height, width=width, lora=Lora(4), **tokens)  # type: ignore[arg-type]
    return spec.load(Runtime())


def images(height: int, width: int) -> Tensor:
    return uniform((height, width), len(PROMPTS) * 3 * height * width).view(-1, 3, height, width)


def learned(policy: DiffusersPolicy, size: tuple[int, int], iteration: int = 0) -> tuple[float, list[Tensor]]:
    """The supervised loss of a batch, and its gradients."""
    batch = captioned(policy, images(*size), PROMPTS, iteration=iteration, seed=0)
    loss = torch.zeros(())
    for parameter in policy.parameters():
        parameter.grad = None
    for term in natural_loss(policy.path)(policy, batch, torch.zeros(len(PROMPTS))):
        term.loss.backward()
        loss += term.loss.detach()
    return loss.item(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def stirred(policy: DiffusersPolicy) -> DiffusersPolicy:
    """An adapter that has left its zeros, so that all of it has a gradient."""
    with torch.no_grad():
        for number, (name, p) in enumerate(policy.weights.trainable.items()):
            if ".lora_B." in name:
                p.copy_(uniform((number,), p.numel()).view_as(p) / 10)
    return policy


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)])
def test_a_bucket_trains_as_a_policy_of_its_size_does(folders: dict[str, Path], name: str) -> None:
    policy = stirred(load(folders[name], 16, 16))
    weights = {size: learned(policy, size) for size in (*BUCKETS, (16, 16))}
    for size in BUCKETS:
        loss, gradients = learned(stirred(load(folders[name], *size)), size)
        assert weights[size][0] == loss
        assert len(gradients) == len(weights[size][1]) == len(list(policy.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(gradients, weights[size][1], strict=True))
        assert any(gradient.any() for gradient in gradients)
    assert len({loss for loss, _ in weights.values()}) == 3


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux-dev"])
def test_supervised_iterations_go_from_bucket_to_bucket(folders: dict[str, Path], name: str) -> None:
    policy = load(folders[name], 16, 16)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    first = {size: learned(policy, size)[0] for size in BUCKETS}
    for iteration in range(6):
        learned(policy, BUCKETS[iteration % 2])
        optimizer.step()
    for size in BUCKETS:
        assert learned(policy, size)[0] < first[size]


def test_sdxl_network_receives_the_size_of_the_batch(folders: dict[str, Path]) -> None:
    policy, sizes = load(folders["sdxl"], 16, 16), []
    keep: Any = lambda _m, _a, kwargs: sizes.append(kwargs["added_cond_kwargs"]["time_ids"])  # noqa: E731
    policy.pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    for size in BUCKETS:
        learned(policy, size)
    for (height, width), ids in zip(BUCKETS, sizes, strict=True):
        assert ids.tolist() == [[height, width, 0, 0, height, width]] * len(PROMPTS)


def test_images_that_are_not_whole_patches_are_refused(folders: dict[str, Path]) -> None:
    for name, whole in (("sdxl", 2), ("sd3", 4)):
        policy = load(folders[name], 16, 16)
        assert policy.encode_images(images(16, 4 * whole)).shape[1:] == (4, 8, 2 * whole)
        with pytest.raises(ConfigError, match=rf"^data: images of 17 x 16 pixels; .* divisible by {whole}\. .*\.$"):
            policy.encode_images(images(16, 17))
