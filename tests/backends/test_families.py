"""What families read from a folder and say of captions, against diffusers' own schedulers and pipelines."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.backends.families.base import pack, unpack, windows
from grpaint.backends.families.flux2 import Flux2Path
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.schedule import diffusion_path, flow_path, flow_path_of_solver
from grpaint.core import CheckpointError, ConfigError, FlowPath, Prompt, VpPath
from grpaint.core.runtime import Runtime
from grpaint.judge import captioned
from grpaint.learn.objective import Denoising
from grpaint.rollout import Closed, Plan, roll
from tiny_parts import clip_tokenizer
from tiny_pipelines import recipe, save, side, stock
from tiny_unets import sdxl

NEEDS_SCIPY = pytest.mark.skipif(not find_spec("scipy"), reason="diffusers takes beta levels from scipy")
QWEN = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "max_image_seq_len": 4096}
SCHEDULES = [
    FLUX,
    {**FLUX, "time_shift_type": "linear"},
    {**QWEN, "shift_terminal": 0.02},
    {"shift": 6.0},
    {"shift": 3.0, "use_karras_sigmas": True},
    {**QWEN, "shift_terminal": 0.02, "use_exponential_sigmas": True},
    pytest.param({**FLUX, "use_beta_sigmas": True}, marks=NEEDS_SCIPY),
]


def written(folder: Path, **settings: Any) -> PipelineFolder:
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(settings))
    return PipelineFolder(folder)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_shifts_by_size_are_the_schedulers(tmp_path: Path, settings: dict[str, Any], tokens: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**settings)
    theirs.save_pretrained(tmp_path / "scheduler")
    low, high = theirs.config.base_shift or 0.5, theirs.config.max_shift or 1.15
    mu = low + (high - low) * (tokens - 256) / (theirs.config.max_image_seq_len - 256)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=mu if settings.get("use_dynamic_shifting") else None)
    ours = [point.sigma for point in flow_path(PipelineFolder(tmp_path), "linear", tokens).grid(8)]
    torch.testing.assert_close(torch.tensor(ours), theirs.sigmas, rtol=0, atol=1e-6)


def test_a_tail_keeps_its_begin_and_the_terminal() -> None:
    path = FlowPath(shift=2.0, terminal=0.02)
    grid, tail = path.grid(10), path.tail(10, 4, 3)
    assert tail[0].sigma == pytest.approx(grid[4].sigma)
    assert tail[-2].sigma == pytest.approx(grid[-2].sigma) == pytest.approx(0.02)
    assert tail[-1].sigma == 0
    assert [point.sigma for point in path.tail(10, 4, 1)] == pytest.approx([grid[4].sigma, 0])
    assert FlowPath(terminal=0.02).grid(1)[0].sigma == 1
    with pytest.raises(ValueError, match="terminal"):
        FlowPath(terminal=1.0)


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
LEADING = {**SD, "timestep_spacing": "leading"}
TRAILING = {**SD, "timestep_spacing": "trailing"}
ZERO_SNR = {**TRAILING, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
KOLORS = {"num_train_timesteps": 1100, "beta_end": 0.014}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
OWN_ENDS = {"sigma_min": 0.1, "sigma_max": 10.0}
SCHEDULERS: list[Any] = [
    ("DDIM", {**ZERO_SNR, "clip_sample": False}),
    ("DDPM", {**ZERO_SNR, "clip_sample": False}),
    ("EulerDiscrete", LEADING),
    ("EulerDiscrete", SD),
    ("EulerDiscrete", TRAILING),
    ("EulerDiscrete", ZERO_SNR),
    ("EulerDiscrete", {**LEADING, **KARRAS}),
    ("EulerDiscrete", {**SD, **EXPONENTIAL, "final_sigmas_type": "sigma_min"}),
    ("EulerDiscrete", {**TRAILING, **KARRAS, **OWN_ENDS}),
    ("EulerDiscrete", {**ZERO_SNR, **EXPONENTIAL}),
    pytest.param("EulerDiscrete", {**LEADING, "use_beta_sigmas": True}, marks=NEEDS_SCIPY),
    ("EulerDiscrete", {**LEADING, **KOLORS}),
    ("EulerDiscrete", {**ZERO_SNR, **KOLORS}),
    ("DDIM", {**TRAILING, **KOLORS, "clip_sample": False}),
    ("DPMSolverMultistep", {**SD, **KOLORS, **KARRAS}),
    ("EulerAncestralDiscrete", TRAILING),
    ("EulerAncestralDiscrete", ZERO_SNR),
    ("HeunDiscrete", {"timestep_spacing": "leading"}),
    ("DPMSolverMultistep", {**LEADING, **KARRAS}),
    ("DPMSolverMultistep", {**SD, "algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistep", {**LEADING, **EXPONENTIAL, **OWN_ENDS}),
    ("LCM", {"original_inference_steps": 50}),
    ("TCD", {}),
]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sdxl", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def scheduled(xl: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that gives SDXL's folder another scheduler; weights are shared."""

    def make(name: str, **settings: Any) -> Path:
        for file in xl.rglob("*"):
            if file.is_file():
                (tmp_path / file.relative_to(xl)).parent.mkdir(exist_ok=True)
                (tmp_path / file.relative_to(xl)).symlink_to(file)
        (tmp_path / "scheduler/scheduler_config.json").unlink()
        getattr(diffusers, f"{name}Scheduler")(**settings).save_pretrained(tmp_path / "scheduler")
        index = json.loads((xl / "model_index.json").read_text()) | {"scheduler": ["diffusers", f"{name}Scheduler"]}
        (tmp_path / "model_index.json").unlink()
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        return tmp_path

    return make


@pytest.mark.parametrize(("name", "settings"), SCHEDULERS, ids=str)
def test_ten_steps_of_every_scheduler_are_those_of_diffusers(
    scheduled: Callable[..., Path], name: str, settings: dict[str, Any]
) -> None:
    """For solvers and ancestral samplers, those of the DDIM or Euler scheduler with the same settings."""
    policy = Diffusers(str(scheduled(name, **settings)), height=16, width=16).load(Runtime())
    start = policy.noise((0, 0, "start"), range(2))
    ours = roll(policy, [Prompt("a"), Prompt("b")], 1, Plan(10, window=Closed()), iteration=0, seed=0).x0
    with torch.no_grad():
        theirs = policy.stock(["a", "b"], start, 10)
    begins_at_zero = settings.get("rescale_betas_zero_snr") and "Euler" in name
    off = ((ours - theirs).norm() / theirs.norm()).item()
    assert off < (1e-4 if begins_at_zero else 1e-6)  # measured: 1e-5 and 9e-7


@pytest.mark.parametrize("name", ["PNDM", "EulerDiscrete"])
def test_zero_terminal_snr_may_be_set_for_a_model_whose_folder_lacks_it(
    scheduled: Callable[..., Path], name: str
) -> None:
    settings = {"zero_snr": True, "prediction": "v", "height": 16, "width": 16}
    policy = Diffusers(str(scheduled(name, **LEADING)), **settings).load(Runtime())
    assert policy.path.grid(10)[0].alpha == (0 if name == "PNDM" else 2**-12)
    start = policy.noise((0, 0, "start"), range(2))
    ours = roll(policy, [Prompt("a"), Prompt("b")], 1, Plan(10, window=Closed()), iteration=0, seed=0).x0
    with torch.no_grad():
        theirs = policy.stock(["a", "b"], start, 10)
    assert ((ours - theirs).norm() / theirs.norm()).item() < (1e-6 if name == "PNDM" else 1e-4)


def test_a_native_size_may_have_two_sides(xl: Path, tmp_path: Path) -> None:
    shutil.copytree(xl, tmp_path / "wide")
    file = tmp_path / "wide/unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": [8, 16]}))
    assert Diffusers(str(tmp_path / "wide")).pixels == (16, 32)
    assert Diffusers(str(tmp_path / "wide"), width=64).pixels == (16, 64)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_clip_skip_is_that_of_the_stock_pipeline(tmp_path: Path, name: str) -> None:
    folder, texts = save(name, tmp_path), ["a cat", "two"]
    plain, policy = (Diffusers(str(folder), height=16, width=16, clip_skip=skip).load(Runtime()) for skip in (0, 1))
    pipe, skip = stock(folder), {"clip_skip": 1}
    if name == "sd15":  # whose pipeline looks for the norm where transformers 5 has none
        pipe.text_encoder.encoder.layers, skip = pipe.text_encoder.encoder.layers[:-1], {}
    encoded = pipe.encode_prompt(
        "a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, **skip
    )
    ours = policy.encode([Prompt("a cat")]).parts
    for part, theirs in zip(ours, encoded[: 2 * len(ours) : 2], strict=True):
        torch.testing.assert_close(part, theirs)
    assert not torch.allclose(ours[0], plain.encode([Prompt("a cat")]).parts[0])
    start = policy.noise((0, 0, "start"), range(2))
    rollout = roll(policy, [Prompt(text) for text in texts], 1, Plan(3, window=Closed()), iteration=0, seed=0)
    with torch.no_grad():
        theirs = policy.stock(texts, start, 3)
    assert ((rollout.x0 - theirs).norm() / theirs.norm()).item() < 1e-6


@pytest.mark.parametrize(
    ("name", "skip", "message"),
    [("sdxl", 2, "text encoders have 2 layers"), ("sd3", 1, "only for Stable Diffusion and SDXL, not sd3")],
)
def test_layers_that_cannot_be_skipped_are_refused_before_weights(
    tmp_path: Path, name: str, skip: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"model.clip_skip = {skip}: .*{message}"):
        _ = Diffusers(str(save(name, tmp_path)), clip_skip=skip).path


def listed_steps(folder: Path, sigmas: tuple[float, ...], **settings: Any) -> float:
    """The relative difference of our latents with a list of levels from the stock pipeline's."""
    policy = Diffusers(str(folder), height=16, width=16, sigmas=sigmas, **settings).load(Runtime())
    start, steps = policy.noise((0, 0, "start"), range(2)), len(sigmas)
    ours = roll(policy, [Prompt("a"), Prompt("b")], 1, Plan(steps, window=Closed()), iteration=0, seed=0).x0
    with torch.no_grad():
        theirs = policy.stock(["a", "b"], start, steps)
    with pytest.raises(ValueError, match=f"steps must be {steps}, as many as model.sigmas lists, got {steps + 1}"):
        policy.path.grid(steps + 1)
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIM", {**LEADING, "clip_sample": False}),
        ("EulerDiscrete", {**TRAILING, **KARRAS}),
        ("DDPM", {**ZERO_SNR, "clip_sample": False}),
    ],
    ids=str,
)
def test_levels_may_be_listed(scheduled: Callable[..., Path], name: str, settings: dict[str, Any]) -> None:
    sigmas = (14.6, 6.3, 2.9, 1.0, 0.25)
    assert listed_steps(scheduled(name, **settings), sigmas) < 5e-6  # measured: 1.2e-6


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_levels_of_a_flow_may_be_listed(tmp_path: Path, name: str) -> None:
    folder = save(name, tmp_path)
    assert listed_steps(folder, (1.0, 0.9, 0.5, 0.1), tokens=16) < 1e-6
    for sigmas in ((1.2, 0.5), (0.5, 0.9), (1.0, 0.0)):
        with pytest.raises(ConfigError, match=r"model.sigmas = .*: they must fall, from 1 at most to above 0"):
            _ = Diffusers(str(folder), sigmas=sigmas).path


@pytest.mark.parametrize(
    ("length", "problem"),
    [(None, "no model_max_length"), ("77", "model_max_length = '77'"), (0, "model_max_length = 0"), (-1, "= -1")],
)
def test_a_tokenizer_without_a_length_is_refused(tmp_path: Path, length: object, problem: str) -> None:
    folder = save("sd15", tmp_path)
    file = folder / "tokenizer/tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"model_max_length": length}))
    with pytest.raises(CheckpointError, match=rf"tokenizer/tokenizer_config.json: .*{problem}. Set it to"):
        Diffusers(str(folder), height=16, width=16).load(Runtime())


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    (folder / "tokenizer/tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer_config.json of a tokenizer there. Copy the tokenizer"):
        Diffusers(str(folder), height=16, width=16).load(Runtime())


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 8, 30, 50])
def test_distilled_timesteps_are_those_of_lcm_and_tcd(steps: int) -> None:
    for kind in (diffusers.LCMScheduler, diffusers.TCDScheduler):
        theirs = kind()
        theirs.set_timesteps(steps)
        assert VpPath(spacing="distilled").timesteps(steps) == theirs.timesteps.tolist()
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.50"):
        VpPath(spacing="distilled").timesteps(51)


def test_at_zero_terminal_snr_the_image_is_read_from_v(scheduled: Callable[..., Path]) -> None:
    policy = Diffusers(str(scheduled("DDIM", **ZERO_SNR, clip_sample=False)), height=16, width=16).load(Runtime())
    x, here = policy.noise((1,), range(2)), policy.path.grid(10)[0]
    assert (here.alpha, here.sigma) == (0, 1)
    cond = policy.encode([Prompt("a"), Prompt("b")])
    with torch.no_grad():
        v = policy.family.call(policy.pipe, x, torch.tensor([999, 999]), cond.tensors(slice(None)), 1.0)
        x0, eps = policy.predict(x, here, cond)
        batch = captioned(policy, torch.ones(2, 3, 16, 16), [Prompt("a"), Prompt("b")], iteration=0, seed=0)
        for target in ("epsilon", "v"):
            loss = Denoising(target, 5.0).loss(policy, batch, policy.path.at(torch.full((2, 1, 1, 1), 999)), x)  # type: ignore[arg-type]
            assert torch.isfinite(loss).all()
    assert torch.equal(x0, -v)
    assert torch.equal(eps, x)


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete"])
def test_epsilon_is_refused_at_zero_terminal_snr(tmp_path: Path, name: str) -> None:
    settings = {**ZERO_SNR, "prediction_type": "epsilon", "clip_sample": False}
    folder = written(tmp_path, _class_name=f"{name}Scheduler", **settings)
    with pytest.raises(ConfigError, match=r'rescale_betas_zero_snr = true .* set model\.prediction = "v"'):
        diffusion_path(folder)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("EulerDiscrete", {"timestep_type": "continuous"}, 'timestep_type = "continuous": no sampler here can follow'),
        ("EulerDiscrete", {"interpolation_type": "log_linear"}, 'interpolation_type = "log_linear": no sampler'),
        ("DPMSolverMultistep", {"use_lu_lambdas": True}, "use_lu_lambdas = true: no sampler"),
        ("UniPCMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas = true: no sampler"),
        ("DDIM", {**KARRAS, "clip_sample": False}, "use_karras_sigmas = true: no sampler"),
        ("LCM", {"original_inference_steps": 100}, "original_inference_steps = 100: no sampler"),
        ("LCM", {"timestep_scaling": 1.0}, "timestep_scaling = 1.0: no sampler"),
        ("LCM", {"num_train_timesteps": 1100}, "num_train_timesteps = 1100: no sampler"),
        ("EulerDiscrete", {"num_train_timesteps": 1e9}, r"num_train_timesteps = 1000000000\.0: .* from 2 to 10000"),
        ("EDMEuler", {}, '_class_name = "EDMEulerScheduler": this noise schedule is not supported'),
    ],
)
def test_schedules_without_a_path_are_refused_by_name(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        diffusion_path(written(tmp_path, _class_name=f"{name}Scheduler", **settings))


def test_latents_are_packed_as_the_pipelines_pack_them() -> None:
    from diffusers import FluxPipeline

    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(x), x), x)


def test_captions_are_read_in_windows() -> None:
    tokenizer, texts = clip_tokenizer(), ["a cat", "abcdefghijklmnopqrstuvwxyz"]
    theirs = tokenizer(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(windows(tokenizer, texts, 0)[:, 0], theirs)
    long = windows(tokenizer, texts, 20)
    assert long.shape == (2, 2, 16)
    assert torch.equal(long[:, 0], theirs)
    second = tokenizer(["", texts[1][14:]], add_special_tokens=False).input_ids
    assert long[0, 1].tolist() == [52, 53, *[53] * 14]
    assert long[1, 1, 1 : 1 + len(second[1])].tolist()[1:] == second[1][1:]  # a piece within a word has no end mark


def test_long_captions_change_the_image_and_short_ones_keep_their_first_window(tmp_path: Path) -> None:
    sdxl().save_pretrained(tmp_path / "sdxl")
    short, long = (Diffusers(str(tmp_path / "sdxl"), tokens=t).load(Runtime()) for t in (0, 28))
    first, both = short.encode([Prompt("a cat")]), long.encode([Prompt("a cat")])
    assert both.parts[0].shape[1] == 32
    torch.testing.assert_close(both.parts[0][:, :16], first.parts[0])
    torch.testing.assert_close(both.parts[1], first.parts[1])
    texts = ["a cat that is long", "a cat that is long and then longer"]
    apart = long.encode([Prompt(text) for text in texts]).parts[0]
    cut = short.encode([Prompt(text) for text in texts]).parts[0]
    torch.testing.assert_close(cut[0], cut[1])
    assert not torch.equal(apart[0], apart[1])


def test_an_empty_caption_of_sdxl_is_zeros(tmp_path: Path) -> None:
    sdxl().save_pretrained(tmp_path / "sdxl")
    cond = Diffusers(str(tmp_path / "sdxl")).load(Runtime()).encode([Prompt(""), Prompt("a")])
    assert not cond.parts[0][0].any()
    assert not cond.parts[1][0].any()
    assert cond.parts[0][1].all()


@pytest.mark.parametrize("name", ["qwen-image", "z-image", "chroma", "hunyuan-image", "krea2", "lumina2", "sana"])
def test_captions_of_other_lengths_share_a_batch(tmp_path: Path, name: str) -> None:
    policy = Diffusers(str(save(name, tmp_path)), height=16, width=16, batch=2).load(Runtime())
    prompts = [Prompt("a"), Prompt("a much longer caption than that"), Prompt("two")]
    x, here = policy.noise((1,), range(3)), policy.path.grid(4)[1]
    with torch.no_grad():
        together = policy.predict(x, here, policy.encode(prompts))
        for row, prompt in enumerate(prompts):
            alone = policy.predict(x[row : row + 1], here, policy.encode([prompt]))
            torch.testing.assert_close(together.x0[row], alone.x0[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("flux-dev", {"guidance": 3.5}, "distilled"),
        ("flux-schnell", {}, "none"),
        ("flux-schnell", {"guidance": 2.0}, "cfg"),
        ("sdxl", {"guidance": 1.0, "guidance_kind": "cfg"}, "cfg"),
        ("flux-dev", {"guidance_kind": "cfg"}, "this flux model supports distilled"),
        ("flux-schnell", {"guidance_kind": "distilled"}, "this flux model supports none or cfg"),
        ("sdxl", {"guidance_kind": "distilled"}, "this sdxl model supports none or cfg"),
    ],
)
def test_guidance_is_checked_before_weights_load(
    tmp_path: Path, name: str, settings: dict[str, Any], kind: str
) -> None:
    folder = save(name, tmp_path)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    spec = Diffusers(str(folder), **settings)
    if "supports" not in kind:
        assert spec.path
        assert spec.guided_by == kind
    else:
        with pytest.raises(ConfigError, match=kind):
            assert spec.path


def test_a_distilled_models_guidance_reaches_the_network_in_one_call(tmp_path: Path) -> None:
    folder = save("flux-dev", tmp_path)
    seen = []
    for guidance in (1.0, 5.0):
        policy = Diffusers(str(folder), height=16, width=16, tokens=16, guidance=guidance).load(Runtime())
        x = policy.noise((1,), range(2))
        with torch.no_grad():
            seen.append(policy.predict(x, policy.path.grid(4)[1], policy.encode([Prompt("a"), Prompt("b")])).x0)
        assert policy.meter.counts["training"] == 2
    assert not torch.equal(*seen)


def test_no_second_call_is_made_for_a_distilled_model(tmp_path: Path) -> None:
    from grpaint.judge import best_guided, guided

    policy = Diffusers(str(save("flux-dev", tmp_path)), height=16, width=16, tokens=16, guidance=3.5).load(Runtime())
    x = policy.noise((1,), range(2))
    with torch.no_grad(), guided(policy, 2.0):
        policy.predict(x, policy.path.grid(4)[1], policy.encode([Prompt("a"), Prompt("b")]))
    assert policy.meter.counts["training"] == 2
    assert best_guided(policy, None, None) is None  # type: ignore[arg-type]


def test_images_of_qwen_go_through_its_video_autoencoder(tmp_path: Path) -> None:
    folder = save("qwen-image", tmp_path)
    policy, pipe = Diffusers(str(folder), height=16, width=16).load(Runtime()), stock(folder)
    latents = policy.noise((1,), range(2))
    mean, std = (torch.tensor(getattr(pipe.vae.config, f"latents_{name}")).view(1, 4, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        theirs = pipe.vae.decode((latents * std + mean)[:, :, None], return_dict=False)[0][:, :, 0]
        images = policy.decode(latents)
        encoded = pipe.vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0]
    torch.testing.assert_close(images, ((theirs + 1) / 2).clamp(0, 1))
    torch.testing.assert_close(policy.encode_images(images) * std + mean, encoded)


@pytest.mark.parametrize(
    "name",
    ["flux2-klein-base", "flux2-dev", "sana", "krea2", "lumina2", "chroma", "kolors", "hidream", "hunyuan-image"],
)
def test_images_are_decoded_as_the_stock_pipeline_decodes_them(tmp_path: Path, name: str) -> None:
    folder = save(name, tmp_path)
    policy = recipe(folder).model.load(Runtime())
    assert isinstance(policy, DiffusersPolicy)
    family, spec, start = policy.family, policy.spec, policy.noise((1,), range(1))
    pipe = stock(folder)
    for key, value in family.stock_settings(pipe, side(name), side(name)).items():
        setattr(pipe, key, value)
    for guider in family.GUIDERS:
        setattr(pipe, guider, None)
    theirs = pipe(
        prompt=["a red cat"],
        latents=family.to_stock(start),
        num_inference_steps=2,
        height=side(name),
        width=side(name),
        output_type="pt",
        **family.arguments(1.0, spec.guided_by),
        **family.length(spec.tokens),
    ).images
    with torch.no_grad():
        images = policy.decode(policy.stock(["a red cat"], start, 2))
        again = policy.decode(policy.encode_images(images))
    torch.testing.assert_close(images, theirs, rtol=0, atol=1e-5)
    assert again.shape == images.shape
    assert images.std() > 0.01


@pytest.mark.parametrize("patches", [256, 1024, 4096, 4400])
@pytest.mark.parametrize("steps", [4, 28, 50])
def test_flux2_shifts_by_patches_and_steps(patches: int, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=compute_empirical_mu(patches, steps))
    ours = [point.sigma for point in Flux2Path(patches=patches).grid(steps)]
    torch.testing.assert_close(torch.tensor(ours), theirs.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 14, 20, 25, 28, 50])
@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_a_solvers_flow_has_the_levels_of_its_scheduler(tmp_path: Path, solver: Any, steps: int, shift: float) -> None:
    theirs = solver(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)
    theirs.save_pretrained(tmp_path / "scheduler")
    theirs.set_timesteps(steps)
    path = flow_path_of_solver(PipelineFolder(tmp_path), solver.__name__)
    ours = torch.tensor([point.sigma for point in path.grid(steps)])
    torch.testing.assert_close(ours, theirs.sigmas, rtol=0, atol=1e-6)
    assert torch.equal((ours[:-1] * 1000).long(), theirs.timesteps)
    assert path.tail(steps, 0, steps) == path.grid(steps)
    assert path.tail(steps, steps - 1, 1) == (path.grid(steps)[-2], path.grid(steps)[-1])


def test_a_solver_of_a_diffusion_is_refused_for_a_flow(tmp_path: Path) -> None:
    DPMSolverMultistepScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ConfigError, match="use_flow_sigmas = false: no sampler here can follow"):
        flow_path_of_solver(PipelineFolder(tmp_path))


def test_images_of_flux2_become_normalised_patches(tmp_path: Path) -> None:
    policy = recipe(save("flux2-klein-base", tmp_path)).model.load(Runtime())
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        theirs = policy.pipe._encode_vae_image(images * 2 - 1, None)  # type: ignore[attr-defined]
        torch.testing.assert_close(policy.encode_images(images), theirs)


@pytest.mark.parametrize("name", ["chroma", "hunyuan-image"])
def test_a_masked_caption_stays_masked_where_activations_are_recomputed(tmp_path: Path, name: str) -> None:
    folder, outputs = save(name, tmp_path), []
    for checkpointing in (False, True):
        policy = recipe(folder, checkpointing=checkpointing).model.load(Runtime())
        cond = policy.encode([Prompt("a"), Prompt("a longer caption")])
        outputs.append(policy.predict(policy.noise((1,), range(2)), policy.path.grid(4)[1], cond).x0)
        outputs[-1].square().sum().backward()
        outputs.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert outputs[1].abs().max() > 0
    torch.testing.assert_close(outputs[2], outputs[0])
    torch.testing.assert_close(outputs[3], outputs[1])


def test_a_model_distilled_to_need_no_guidance_refuses_it_before_weights(tmp_path: Path) -> None:
    folder = save("flux2-klein", tmp_path)
    with pytest.raises(ConfigError, match=r"model.guidance = 4: this flux2-klein model is distilled .* Set it to 1"):
        _ = Diffusers(str(folder), height=16, width=16, guidance=4.0).guided_by
    assert Diffusers(str(folder), height=16, width=16).guided_by == "none"


@pytest.mark.parametrize(
    ("family", "message"), [("nowhere:Mine", "cannot be imported"), ("json:loads", "not a subclass|cannot be imported")]
)
def test_families_that_are_none_are_refused(tmp_path: Path, family: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assert Diffusers(str(save("sd15", tmp_path)), family=family).path


@pytest.mark.parametrize(("name", "most"), [("flux-dev", 512), ("sd3", 512), ("qwen-image", 1024)])
def test_more_tokens_than_the_stock_pipeline_takes_are_refused_before_weights(
    tmp_path: Path, name: str, most: int
) -> None:
    folder = save(name, tmp_path)
    assert Diffusers(str(folder), height=16, width=16, tokens=most).path
    with pytest.raises(ConfigError, match=f"model.tokens = {most + 1}: this model's pipeline reads {most} at most"):
        _ = Diffusers(str(folder), height=16, width=16, tokens=most + 1).path
