"""The conformance suite that every family passes, ours and a stranger's: the checks of ``grpaint doctor``."""

from pathlib import Path
from typing import Any

import pytest
import torch

from grpaint.commands.doctor.command import CHECKS, examine
from grpaint.commands.doctor.examination import Check, Examination, update
from grpaint.commands.doctor.learning import export_reloads, gradients, grpo_raises_reward, sft_lowers_loss
from grpaint.commands.doctor.sampling import initial_ratio, noise_floor, sampler_parity, step_noise
from grpaint.core.runtime import Runtime
from grpaint.judge import captioned, natural_loss
from tiny_pipelines import PIPELINES, recipe, save


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("pipelines"))


def failures(folder: Path, runtime: Runtime, checks: tuple[Check, ...] = CHECKS, **model: Any) -> list[str]:
    findings = list(examine(recipe(folder, **model), runtime, checks))
    assert len(findings) == len(checks)
    return [f"{finding.check}: {finding.evidence}" for finding in findings if not finding.passed]


FAST = tuple(check for check in CHECKS if check not in (grpo_raises_reward, sft_lowers_loss))
GUIDED = (sampler_parity, initial_ratio, gradients)  # what may differ where the network is called twice a prediction
# A network learns once: these have that of sd15, of sdxl and of flux-dev.
ALIKE = ("sd15-pndm", "ssd-1b", "flux-schnell", "flux2-klein", "flux2-dev", "krea2-turbo", "hidream-dev")
CONFORMING = [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in PIPELINES]
# What these learn and how they round, the first families show.
LATER = (
    "sana",
    "krea2",
    "lumina2",
    "chroma",
    "flux2-klein-base",
    "kolors",
    "hidream",
    "hunyuan-image",
    "qwen-image-2.1",
)
SELDOM = (*LATER, "flux2-klein", "flux2-dev", "krea2-turbo", "hidream-dev")
LEARNING = [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE + LATER else []) for name in PIPELINES]
ROUNDED = [pytest.param(name, marks=[pytest.mark.slow] if name in SELDOM else []) for name in PIPELINES]


def guidance(folder: Path) -> float:
    return 1.0 if folder.name in ("flux2-klein", "krea2-turbo", "hidream-dev") else 3.5  # those have none


@pytest.mark.parametrize("folder", CONFORMING, indirect=True)
def test_a_family_conforms(folder: Path) -> None:
    assert not failures(folder, Runtime(), FAST, guidance=guidance(folder))


@pytest.mark.parametrize("folder", ALIKE, indirect=True)
def test_a_pipeline_that_shares_a_network_conforms_in_its_own_parts(folder: Path) -> None:
    checks = (sampler_parity, initial_ratio, gradients, export_reloads)
    assert not failures(folder, Runtime(), checks, guidance=guidance(folder))


@pytest.mark.parametrize("folder", CONFORMING, indirect=True)
def test_a_family_conforms_without_guidance(folder: Path) -> None:
    assert not failures(folder, Runtime(), GUIDED, guidance=1.0)


@pytest.mark.parametrize("folder", LEARNING, indirect=True)
def test_a_family_learns(folder: Path) -> None:
    """SFT lowers the loss, GRPO raises its reward; the gains of sd15, sd3, sdxl and qwen-image were above 10 errors."""
    case = Examination(recipe(folder), recipe(folder).model.load(Runtime()), Runtime())
    updates = 24 if folder.name.startswith("flux") else 6  # its random network hardly reaches the mean of an image
    for finding in (sft_lowers_loss(case, 6), grpo_raises_reward(case, updates, group=16)):
        assert finding.passed, finding


@pytest.mark.parametrize("folder", LEARNING, indirect=True)
def test_sft_makes_images_brighter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On latents along the gradient of brightness: a random VAE would encode white images to what is not bright."""
    case = Examination(recipe(folder, lora=None), recipe(folder, lora=None).model.load(Runtime()), Runtime())
    latents = case.policy.noise((0, "bright"), range(16)).requires_grad_()
    case.policy.decode(latents).mean((1, 2, 3)).sum().backward()
    assert latents.grad is not None
    way = latents.grad.mean(0, keepdim=True)
    bright = (latents.detach() + way / way.square().mean().sqrt()) / 2**0.5
    monkeypatch.setattr(case.policy, "encode_images", lambda _: bright)
    prompts, white, nothing = (case.prompts * 8)[:16], torch.ones(16, 3, 8, 8), torch.zeros(16)
    loss, optimizer, scaler = natural_loss(case.policy.path), case.optimizer(), case.scaler()
    before = case.images(count=16).mean((1, 2, 3))
    is_slow = folder.name in ("sdxl", "ssd-1b", "kolors", "qwen-image-2.1")
    for iteration in range(36 if is_slow else 12):
        batch = captioned(case.policy, white, prompts, iteration=iteration, seed=0)
        update(optimizer, scaler, loss(case.policy, batch, nothing))
    gain = case.images(count=16).mean((1, 2, 3)) - before
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize("folder", ROUNDED, indirect=True)
def test_a_family_conforms_in_bf16(folder: Path) -> None:
    checks = (sampler_parity, step_noise, initial_ratio)
    assert not failures(folder, Runtime(precision="bf16"), checks, guidance=guidance(folder))


@pytest.mark.slow
@pytest.mark.parametrize("folder", PIPELINES, indirect=True)
def test_a_family_conforms_in_bf16_without_guidance(folder: Path) -> None:
    assert not failures(folder, Runtime(precision="bf16"), (sampler_parity, step_noise, initial_ratio), guidance=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("folder", PIPELINES, indirect=True)
def test_a_family_conforms_on_a_gpu(folder: Path) -> None:
    checks = tuple(check for check in CHECKS if check is not noise_floor)
    assert not failures(folder, Runtime("cuda", "bf16"), checks, guidance=guidance(folder))


@pytest.mark.parametrize("folder", ["sd15", "sd3", pytest.param("qwen-image", marks=pytest.mark.slow)], indirect=True)
def test_a_whole_network_conforms(folder: Path) -> None:
    assert not failures(folder, Runtime(), FAST, lora=None)
    assert not failures(folder, Runtime(precision="bf16"), (sampler_parity, step_noise, initial_ratio), lora=None)


@pytest.mark.parametrize("folder", ["sdxl"], indirect=True)
def test_zero_terminal_snr_conforms(folder: Path) -> None:
    model = {"zero_snr": True, "prediction": "v", "clip_skip": 1}
    assert not failures(folder, Runtime(), FAST, guidance=3.5, **model)
    assert not failures(folder, Runtime(precision="bf16"), (sampler_parity, step_noise, initial_ratio), **model)


@pytest.mark.parametrize("folder", ["sd15"], indirect=True)
def test_a_strangers_family_conforms(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_family.py"
    file.write_text(
        "from grpaint.backends.families.sd15 import StableDiffusion\n\n\n"
        "class Mine(StableDiffusion):\n    TARGETS = ('to_q', 'to_v')\n"
    )
    assert not failures(folder, Runtime(), (*GUIDED, export_reloads), family=f"{file}:Mine")
    policy = recipe(folder, family=f"{file}:Mine").model.load(Runtime())
    names = [name for name, p in policy.weights.trainable.items() if isinstance(p, torch.Tensor)]
    assert names
    assert all(".to_q." in name or ".to_v." in name for name in names)
