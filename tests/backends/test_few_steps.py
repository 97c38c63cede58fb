"""Models of few steps: their stock pipelines, noise included, and that methods start from a ratio of 1 on them."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from grpaint.backends.diffusers import Diffusers
from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.commands.doctor.command import examine
from grpaint.commands.doctor.learning import export_reloads, gradients
from grpaint.commands.doctor.sampling import initial_ratio, sampler_parity, step_noise
from grpaint.core import ConfigError, Ddim, Lcm, Ode, Prompt, Sampler
from grpaint.core.runtime import Precision, Runtime
from grpaint.learn import AdvantageWeightedMatching
from grpaint.rollout import Closed, Plan, roll
from tiny_pipelines import recipe, save, stock

TEXTS = ["a red cat", "two"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return lambda name: root / name if (root / name).exists() else save(name, root)


def stock_latents(
    policy: DiffusersPolicy, pipe: Any, steps: int, monkeypatch: pytest.MonkeyPatch, **arguments: Any
) -> Tensor:
    """The stock pipeline's latents from our start noise, with our noise at every step of its own scheduler."""
    steps_noise = iter([policy.noise((0, 0, step), range(2)) for step in range(steps)])
    module = import_module(type(pipe.scheduler).__module__)

    def next_noise(shape: tuple[int, ...], **_: Any) -> Tensor:
        return policy.family.to_stock(next(steps_noise)).view(shape)

    monkeypatch.setattr(module, "randn_tensor", next_noise, raising=False)  # Euler's module lacks it
    start = policy.noise((0, 0, "start"), range(2))
    with torch.no_grad():
        latents = pipe(
            prompt=list(TEXTS),  # Z-Image changes the list
            latents=policy.family.to_stock(start),
            num_inference_steps=steps,
            height=16,
            width=16,
            output_type="latent",
            **arguments,
        ).images
    return policy.family.from_stock(pipe, latents, start)


SCHEDULERS = {"distilled": "LCMScheduler", "trailing": "EulerDiscreteScheduler"}
CASES = [
    ("sd15-lcm", {"guidance": 8.5}, Lcm(), 4),
    ("sd15-lcm", {}, Lcm(), 1),
    ("sdxl-lcm", {"guidance": 8.0}, Lcm(), 4),
    ("sdxl-lcm", {}, Ode(), 1),
    ("sdxl-turbo", {}, Ddim(1.0), 1),
    ("sdxl-turbo", {}, Ddim(1.0), 4),
    ("sdxl", {"spacing": "trailing"}, Ode(), 4),
    ("sdxl", {"spacing": "distilled", "guidance": 1.5}, Lcm(), 4),
    ("sd15", {"spacing": "distilled"}, Lcm(), 8),
]


@pytest.mark.parametrize(("name", "settings", "sampler", "steps"), CASES, ids=str)
def test_few_steps_are_those_of_the_stock_pipeline_with_its_scheduler(
    folders: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    settings: dict[str, Any],
    sampler: Sampler,
    steps: int,
) -> None:
    policy = Diffusers(str(folders(name)), height=16, width=16, **settings).load(Runtime())
    plan = Plan(steps, window=Closed(), outside=sampler)
    ours = roll(policy, [Prompt(text) for text in TEXTS], 1, plan, iteration=0, seed=0).x0
    pipe = stock(folders(name))
    if spacing := settings.get("spacing"):
        kind = getattr(diffusers, SCHEDULERS[spacing])
        pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    theirs = stock_latents(policy, pipe, steps, monkeypatch, guidance_scale=settings.get("guidance", 1.0))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-6  # measured: 4e-7


@pytest.mark.parametrize("name", ["flux-schnell", "z-image", "sd3"])
def test_a_flow_in_few_steps_is_that_of_the_stock_pipeline_with_the_lcm_scheduler(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    pipe = stock(folders(name))
    pipe.scheduler = diffusers.FlowMatchLCMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / name)
    policy = Diffusers(str(tmp_path / name), height=16, width=16).load(Runtime())
    guidance = policy.family.arguments(1.0, policy.spec.guided_by)
    prompts = [Prompt(text) for text in TEXTS]
    for sampler in (Lcm(), Ode()):
        plan = Plan(4, window=Closed(), outside=sampler)
        ours = roll(policy, prompts, 1, plan, iteration=0, seed=0).x0
        if isinstance(sampler, Lcm):
            theirs = stock_latents(policy, pipe, 4, monkeypatch, **guidance)
        else:
            with torch.no_grad():
                theirs = policy.stock(TEXTS, policy.noise((0, 0, "start"), range(2)), 4)
        assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-6


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sd3", {"spacing": "trailing"}, 'model.spacing = "trailing": this model is a flow'),
        ("sd3", {"zero_snr": True}, "model.zero_snr = true: this model is a flow"),
        ("sdxl-lcm", {"spacing": "trailing"}, "LCMScheduler has the timesteps of its distillation"),
        ("sdxl-lcm", {"guidance": 2.0, "guidance_kind": "cfg"}, "this sdxl model supports distilled"),
    ],
)
def test_a_schedule_or_guidance_that_the_model_lacks_is_refused(
    folders: Callable[[str], Path], name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = Diffusers(str(folders(name)), **settings).path


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["sd15-lcm", "sdxl-lcm"])
def test_a_model_that_is_given_its_guidance_conforms(
    folders: Callable[[str], Path], name: str, precision: Precision
) -> None:
    settings = recipe(folders(name), guidance=8.5)
    if name == "sd15-lcm":
        settings = replace(settings, plan=Plan(1, window=Closed()), objective=AdvantageWeightedMatching())
    else:
        settings = replace(settings, plan=Plan(2, Lcm()))
    checks = (sampler_parity, step_noise, initial_ratio, gradients, export_reloads)
    for finding in examine(settings, Runtime(precision=precision), checks if precision == "fp32" else checks[:3]):
        assert finding.passed, finding
