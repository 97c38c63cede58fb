"""The diffusers backend against the pipelines that it borrows from."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.core import (
    CheckpointError,
    ConfigError,
    Cps,
    Ddim,
    FlowPath,
    FlowSde,
    MissingExtra,
    Point,
    Prompt,
    Sampler,
    VpPath,
)
from grpaint.core import Path as NoisePath
from grpaint.core.runtime import DTYPES, Runtime
from grpaint.learn.objective import PolicyGradient
from grpaint.rollout import Closed, Plan, Rollout, Whole, act, roll
from grpaint.storage.files import write_weights
from tiny_pipelines import save_all, stock

Folders = dict[str, Path]
TEXTS = ["a red cat", "two blue dogs"]
PROMPTS = [Prompt(text) for text in TEXTS]
NOISY = [("sd3", FlowSde()), ("sd3", Cps()), ("sd15", Ddim())]
CPU = Runtime()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Saved pipelines by name; nobody may write there."""
    return save_all(tmp_path_factory.mktemp("pipelines"))


def path_of(folder: Path | str) -> NoisePath:
    return Diffusers(str(folder)).path


def load(folder: Path, runtime: Runtime = CPU, **settings: object) -> DiffusersPolicy:
    return Diffusers(str(folder), **settings).load(runtime)  # type: ignore[arg-type]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def sample(pipe: object, start: Tensor, guidance: float, steps: int) -> Tensor:
    """The stock pipeline's latents: two images of each caption."""
    texts = [text for text in TEXTS for _ in range(2)]
    return pipe(  # type: ignore[operator]
        prompt=texts, guidance_scale=guidance, num_inference_steps=steps, latents=start.clone(), output_type="latent"
    ).images


def explore(policy: DiffusersPolicy, sampler: Sampler, steps: int = 3) -> Rollout:
    return roll(policy, PROMPTS, 2, Plan(steps, sampler, Whole()), iteration=0, seed=0)


def update(policy: DiffusersPolicy, sampler: Sampler, optimizer: torch.optim.Optimizer) -> None:
    """One GRPO update that prefers the first image of each caption."""
    optimizer.zero_grad()
    for term in PolicyGradient()(policy, explore(policy, sampler), torch.tensor([1.0, -1.0, 1.0, -1.0])):
        term.loss.backward()
    optimizer.step()


def trained(folder: Path, sampler: Sampler, updates: int = 2, **settings: object) -> DiffusersPolicy:
    policy = load(folder, lora=Lora(rank=4, alpha=12), **settings)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    for _ in range(updates):
        update(policy, sampler, optimizer)
    return policy


def predictions(policy: DiffusersPolicy, weights: str = "current") -> Tensor:
    x, here = policy.noise((7,), range(2)), policy.path.grid(4)[1]
    with torch.no_grad():
        return torch.stack(policy.predict(x, here, policy.encode(PROMPTS), weights))  # type: ignore[arg-type]


# The house samples what the pipeline samples.


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", ["sd3", "sd15", "sd15-v"])
def test_ode_equals_the_stock_pipeline(folders: Folders, name: str, guidance: float) -> None:
    policy = load(folders[name], guidance=guidance, batch=3)
    rollout = roll(policy, PROMPTS, 2, Plan(10, window=Closed()), iteration=0, seed=0)
    start = policy.noise((0, 0, "start"), range(4))
    theirs = sample(stock(folders[name]), start, guidance, 10)
    assert relative(rollout.x0, theirs) < 5e-6  # measured: 4e-7 (sd3), 7e-7 (sd15)
    assert policy.meter.counts["training"] == 10 * 4 * (1 if guidance == 1 else 2)


def test_a_schedule_without_the_double_shift_is_recognised(folders: Folders) -> None:
    policy = load(folders["sd3"])
    policy.path = FlowPath(shift=3.0)
    rollout = roll(policy, PROMPTS, 2, Plan(10, window=Closed()), iteration=0, seed=0)
    theirs = sample(stock(folders["sd3"]), policy.noise((0, 0, "start"), range(4)), 1.0, 10)
    assert relative(rollout.x0, theirs) > 1e-3


def test_guidance_and_captions_reach_the_network(folders: Folders) -> None:
    for name in ("sd3", "sd15"):
        policy = load(folders[name], guidance=4.5)
        guided, policy.guidance = predictions(policy), 1.0  # as an evaluation may
        plain = predictions(policy)
        x, cond = policy.noise((7,), [0]).expand(2, -1, -1, -1), policy.encode(PROMPTS)
        first, second = policy.predict(x, policy.path.grid(4)[1], cond).eps
        assert not torch.equal(plain, guided)
        assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_rows_may_have_times_of_their_own(folders: Folders, name: str) -> None:
    policy = load(folders[name], guidance=2.0, batch=2)
    x, cond = policy.noise((1,), range(3)), policy.encode([*PROMPTS, Prompt("")])
    places = policy.path.grid(4)[:3]
    t = torch.tensor([place.t for place in places]).view(3, 1, 1, 1)
    with torch.no_grad():
        together = policy.predict(x, policy.path.at(t), cond)
        for row, place in enumerate(places):
            alone = policy.predict(x[row : row + 1], place, cond.rows(torch.tensor([row])))
            assert relative(together.x0[row], alone.x0[0]) < 1e-5


# Replay is rollout.


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize(("name", "sampler"), NOISY)
@pytest.mark.parametrize("settings", [{}, {"lora": Lora(4), "checkpointing": True, "batch": 3}], ids=["full", "lora"])
def test_ratio_is_exactly_one(
    folders: Folders, name: str, sampler: Sampler, guidance: float, settings: dict[str, object]
) -> None:
    policy = load(folders[name], guidance=guidance, **settings)
    rollout = explore(policy, sampler)
    assert [transition.step for transition in rollout.transitions] == [0, 1]
    for transition in rollout.transitions:
        cond = rollout.cond.rows(transition.rows)
        gaussian, _ = act(policy, sampler, transition.x, transition.here, transition.there, cond)
        assert gaussian.mean.requires_grad
        assert torch.equal(gaussian.log_prob(transition.x_next), transition.logp)


def test_checkpointing_changes_no_gradient(folders: Folders) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        policy = load(folders["sd3"], checkpointing=checkpointing)
        policy.predict(policy.noise((1,), range(2)), Point(0.5, 0.5, 0.5), policy.encode(PROMPTS)).x0.sum().backward()
        return [p.grad for p in policy.parameters() if p.grad is not None]

    for stored, computed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(stored, computed)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_and_masters_and_latents_stay_in_fp32(
    folders: Folders, precision: Literal["bf16", "fp16"]
) -> None:
    for name, sampler in NOISY[::2]:
        policy = load(folders[name], Runtime(precision=precision), lora=Lora(4), guidance=2.0)
        network = getattr(policy.pipe, policy.family.NETWORK)
        frozen = {p.dtype for p in network.parameters() if not p.requires_grad}
        assert frozen == {DTYPES[precision]}
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
        rollout = explore(policy, sampler)
        assert rollout.x0.dtype == torch.float32
        assert policy.decode(rollout.x0).dtype == torch.float32
        for transition in rollout.transitions:
            cond = rollout.cond.rows(transition.rows)
            gaussian, _ = act(policy, sampler, transition.x, transition.here, transition.there, cond)
            assert torch.equal(gaussian.log_prob(transition.x_next), transition.logp)


# Training moves the adapter and nothing else.


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize(("name", "sampler"), NOISY[::2])
def test_an_update_moves_every_adapter_tensor_and_nothing_else(
    folders: Folders, name: str, sampler: Sampler, guidance: float
) -> None:
    policy = load(folders[name], lora=Lora(4), guidance=guidance)
    modules = {key: part for key, part in policy.pipe.components.items() if isinstance(part, torch.nn.Module)}
    before = {f"{key}.{k}": t.clone() for key, part in modules.items() for k, t in part.state_dict().items()}
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    update(policy, sampler, optimizer)
    gradients = {key: p.grad for key, p in policy.weights.trainable.items()}
    assert all(gradient is not None for gradient in gradients.values())
    update(policy, sampler, optimizer)  # lora_A has no gradient until lora_B has left its zeros
    after = {f"{key}.{k}": t for key, part in modules.items() for k, t in part.state_dict().items()}
    still = {key for key in after if torch.equal(before[key], after[key])}
    adapters = {key for key in after if ".lora_" in key}
    # the last block of SD3 drops its text tokens, so their queries mean nothing
    idle = {key for key in adapters if name == "sd3" and "transformer_blocks.1.attn.add_q_proj" in key}
    assert adapters
    assert still == (after.keys() - adapters) | idle


@pytest.mark.parametrize(("name", "sampler"), NOISY[::2])
def test_the_reference_is_the_base_exactly(folders: Folders, name: str, sampler: Sampler) -> None:
    policy, base = trained(folders[name], sampler), predictions(load(folders[name]))
    assert torch.equal(predictions(policy, "reference"), base)
    assert not torch.equal(predictions(policy), base)
    policy.blend("average", 0.0)
    assert torch.equal(predictions(policy, "average"), predictions(policy))


def test_whole_networks_train_too(folders: Folders) -> None:
    policy, base = load(folders["sd15"]), predictions(load(folders["sd15"]))
    update(policy, Ddim(), torch.optim.Adam(policy.parameters(), lr=1e-3))
    assert torch.equal(predictions(policy, "reference"), base)
    assert not torch.equal(predictions(policy), base)
    assert not any(p.requires_grad for p in policy.pipe.text_encoder.parameters())


def test_adapters_begin_alike_and_leave_the_global_generator_alone(folders: Folders) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load(folders["sd15"], lora=Lora(4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = load(folders["sd15"], lora=Lora(4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# What is exported is what was trained.


@pytest.mark.parametrize(("name", "sampler"), NOISY[::2])
def test_stock_diffusers_loads_the_exported_adapter(
    folders: Folders, name: str, sampler: Sampler, tmp_path: Path
) -> None:
    policy = trained(folders[name], sampler)
    write_weights(tmp_path / "model.safetensors", *policy.export("current"))
    pipe = stock(folders[name])
    start = policy.noise((0, 0, "start"), range(4))
    plain = sample(pipe, start, 1.0, 4)
    pipe.load_lora_weights(tmp_path, weight_name="model.safetensors")
    rollout = roll(policy, PROMPTS, 2, Plan(4, window=Closed()), iteration=0, seed=0)
    theirs = sample(pipe, start, 1.0, 4)
    assert relative(rollout.x0, theirs) < 1e-5 < 1e-3 < relative(plain, theirs)


def test_training_continues_from_an_exported_adapter(folders: Folders, tmp_path: Path) -> None:
    policy = trained(folders["sd3"], FlowSde())
    write_weights(tmp_path / "model.safetensors", *policy.export("current"))
    again = load(folders["sd3"], lora=Lora(rank=4, alpha=4), start=str(tmp_path))
    torch.testing.assert_close(predictions(again), predictions(policy), rtol=1e-5, atol=1e-5)
    begun = predictions(again)
    update(again, FlowSde(), torch.optim.Adam(again.parameters(), lr=0.03))
    assert torch.equal(predictions(again, "reference"), begun)
    assert not torch.equal(predictions(again), begun)


def test_an_adapter_that_diffusers_saved_keeps_its_strength(folders: Folders, tmp_path: Path) -> None:
    policy = trained(folders["sd15"], Ddim())
    tensors, _ = policy.export("current")
    halved = {key: t / 2 if ".lora_B." in key else t for key, t in tensors.items()}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    write_weights(tmp_path / "foreign.safetensors", halved, header)
    again = load(folders["sd15"], lora=Lora(4), start=str(tmp_path / "foreign.safetensors"))
    torch.testing.assert_close(predictions(again), predictions(policy), rtol=1e-5, atol=1e-5)


def test_a_whole_network_is_exported_and_opens_again_under_an_adapter(folders: Folders, tmp_path: Path) -> None:
    policy = load(folders["sd15"])
    update(policy, Ddim(), torch.optim.Adam(policy.parameters(), lr=1e-3))
    tensors, labels = policy.export("current")
    assert labels["family"] == "sd15"
    write_weights(tmp_path / "model.safetensors", tensors, labels)
    again = load(folders["sd15"], start=str(tmp_path), lora=Lora(4))
    assert torch.equal(predictions(again), predictions(policy))
    assert torch.equal(predictions(again, "reference"), predictions(again))


def test_an_adapter_trained_on_a_whole_start_is_opened_on_it_again(folders: Folders, tmp_path: Path) -> None:
    whole = load(folders["sd15"])
    update(whole, Ddim(), torch.optim.Adam(whole.parameters(), lr=1e-3))
    write_weights(tmp_path / "whole.safetensors", *whole.export("current"))
    spec = Diffusers(str(folders["sd15"]), lora=Lora(4), start=str(tmp_path / "whole.safetensors"))
    policy = spec.load(CPU)
    update(policy, Ddim(), torch.optim.Adam(policy.parameters(), lr=0.03))
    write_weights(tmp_path / "model.safetensors", *policy.export("current"))
    again = spec.from_file(str(tmp_path / "model.safetensors")).load(CPU)
    torch.testing.assert_close(predictions(again), predictions(policy), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(predictions(again), predictions(whole), rtol=1e-3)


# Images.


@pytest.mark.parametrize("name", ["sd3", "sd15"])
def test_images_and_latents(folders: Folders, name: str) -> None:
    policy, pipe = load(folders[name], batch=2), stock(folders[name])
    latents = policy.noise((3,), range(3)) * 3
    images = policy.decode(latents)
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    scaled = latents / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0)
    with torch.no_grad():
        theirs = pipe.image_processor.postprocess(pipe.vae.decode(scaled).sample, output_type="pt")
        mean = pipe.vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(images, theirs)
    encoded = policy.encode_images(images)
    assert encoded.shape == (3, *policy.spec.sample_shape)
    assert not encoded.requires_grad
    torch.testing.assert_close(encoded / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0), mean)


def test_height_and_width_set_the_latents(folders: Folders) -> None:
    policy = load(folders["sd15"], height=24, width=32)
    assert policy.spec.sample_shape == (4, 12, 16)
    images = policy.decode(roll(policy, PROMPTS, 1, Plan(2, window=Closed()), iteration=0, seed=0).x0)
    assert images.shape == (2, 3, 24, 32)


# What is known before weights are opened, and what is refused.


@pytest.fixture
def bare(folders: Folders, tmp_path: Path) -> Callable[..., Path]:
    """A folder's settings without its weights, some of them changed."""

    def make(name: str, file: str = "scheduler/scheduler_config.json", **changes: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(folders[name], folder, ignore=shutil.ignore_patterns("*.safetensors"))
        settings = {**json.loads((folder / file).read_text()), **changes}
        (folder / file).write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))
        return folder

    return make


def test_paths_are_read_without_weights(bare: Callable[..., Path]) -> None:
    assert path_of(bare("sd3")) == FlowPath(shift=3.0, spacing="sd3")
    assert path_of(bare("sd15")) == VpPath()
    sd2 = Diffusers(str(bare("sd15-v")))
    assert sd2.path == VpPath(spacing="trailing", final="one")
    assert (sd2.parametrisation, sd2.sample_shape) == ("v", (4, 8, 8))


def test_the_schedule_that_stable_diffusion_ships_is_read(bare: Callable[..., Path]) -> None:
    folder = bare("sd15", _class_name="PNDMScheduler", skip_prk_steps=True, timestep_spacing=..., prediction_type=...)
    assert path_of(folder) == VpPath()


REFUSED = [
    ("sd3", {"use_dynamic_shifting": True}),
    ("sd3", {"shift_terminal": 0.02}),
    ("sd3", {"stochastic_sampling": True}),
    ("sd3", {"_class_name": "HeunDiscreteScheduler"}),
    ("sd15", {"clip_sample": True}),
    ("sd15", {"thresholding": True}),
    ("sd15", {"rescale_betas_zero_snr": True}),
    ("sd15", {"prediction_type": "sample"}),
    ("sd15", {"beta_schedule": "sigmoid"}),
    ("sd15", {"num_train_timesteps": 10_001}),
    ("sd15", {"_class_name": "EDMEulerScheduler"}),
]


@pytest.mark.parametrize(("name", "change"), REFUSED)
def test_schedules_beyond_a_path_are_refused(bare: Callable[..., Path], name: str, change: dict[str, object]) -> None:
    ((key, value),) = change.items()
    with pytest.raises(ConfigError, match=rf"scheduler_config\.json: {key} = .*{json.dumps(value)}.*: .*\.") as refusal:
        path_of(bare(name, **change))
    assert "\n" not in str(refusal.value)


def test_a_schedule_that_leaves_out_clipping_clips(bare: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="clip_sample = true"):
        path_of(bare("sd15", clip_sample=...))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"guidance": -1.0}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"batch": 0}, "batch"),
        ({"height": -8}, "height"),
        ({"family": "sd9"}, "family"),
        ({"base": ""}, "base"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        Diffusers(**{"base": "x", **settings})  # type: ignore[arg-type]


def test_folders_that_cannot_be_a_model_are_refused(bare: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'model\.base = "\./sd3": no such folder'):
        path_of("./sd3")
    with pytest.raises(ConfigError, match=r'model\.base = "stabilityai/sd3": not on this machine'):
        path_of("stabilityai/sd3")  # tests have no network
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"model_index\.json: not found"):
        path_of(tmp_path / "empty")
    folder = bare("sd3", "model_index.json", _class_name="MochiPipeline")
    with pytest.raises(ConfigError, match='no family reads a pipeline of class "MochiPipeline"'):
        path_of(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model_index\.json:1: not JSON"):
        path_of(folder)


def test_image_sizes_that_are_no_whole_number_of_patches_are_refused(bare: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.width = 18: this model's images have sides divisible by 4"):
        assert Diffusers(str(bare("sd3")), width=18).sample_shape


def test_starts_that_do_not_fit_are_refused(folders: Folders, tmp_path: Path) -> None:
    tensors, labels = load(folders["sd15"], lora=Lora(4)).export("current")
    file = tmp_path / "adapter.safetensors"
    write_weights(file, tensors, labels)
    with pytest.raises(CheckpointError, match=r"no model\.lora is set"):
        load(folders["sd15"], start=str(file))
    with pytest.raises(CheckpointError, match="of another shape"):
        load(folders["sd15"], lora=Lora(8), start=str(file))
    with pytest.raises(CheckpointError, match='its family is "sd15", the recipe\'s is "sd3"'):
        load(folders["sd3"], lora=Lora(4), start=str(file))


def test_without_diffusers_the_line_to_type_is_named(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert path_of(folders["sd15"]) == VpPath()
    with pytest.raises(MissingExtra, match=r"pip install 'grpaint\[diffusers\]'"):
        load(folders["sd15"])


@pytest.mark.parametrize("settings", [{}, {"lora": Lora(4)}], ids=["whole", "lora"])
def test_a_resumed_policy_answers_as_before(folders: Folders, settings: dict[str, object]) -> None:
    policy, again = load(folders["sd15"], **settings), load(folders["sd15"], **settings)
    update(policy, Ddim(), torch.optim.Adam(policy.parameters(), lr=0.01))
    policy.blend("average", 0.5)
    tensors_saved = {name: tensors for name, tensors in policy.weights.tensors().items() if name != "reference"}
    again.weights.load(tensors_saved)
    for weights in ("current", "average", "reference"):
        assert torch.equal(predictions(again, weights), predictions(policy, weights))
