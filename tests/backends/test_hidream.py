"""HiDream-I1: its routed experts with gradients and as planned, its sizes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchLCMScheduler
from PIL import Image

from grpaint.backends.diffusers import Diffusers
from grpaint.backends.families.folder import PipelineFolder
from grpaint.backends.families.hidream import HiDream
from grpaint.core import ConfigError
from grpaint.core.runtime import Runtime
from tiny_flows import hidream
from tiny_pipelines import recipe, save
from tiny_runs import command

FAMILY = HiDream()


def block(network: Any) -> Any:
    return network.single_stream_blocks[0].block.ff_i


@pytest.mark.parametrize("forced", [False, True])
def test_experts_compute_the_same_with_gradients(forced: bool) -> None:
    """``forced``: a setting of the network that leaves no other path, even in train mode."""
    network = hidream().transformer
    experts, x = block(network), torch.randn(3, 20, 32)
    for module in (experts, experts.gate):
        module._force_inference_output = forced
    theirs = experts(x)
    routed = theirs - experts.shared_experts(x)
    assert routed.abs().mean() > 0.01
    FAMILY.prepare(network, fake=False)
    ours = experts(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    experts.zero_grad()
    (ours - experts.shared_experts(x)).square().sum().backward()
    assert all(p.grad.any() for name, p in experts.named_parameters() if not name.startswith("shared"))
    assert not network.training


def test_planned_experts_compute_what_routed_ones_do_where_all_are_alike() -> None:
    network = hidream().transformer
    experts, x = block(network), torch.randn(3, 21, 32)
    for expert in experts.experts:
        expert.load_state_dict(experts.experts[0].state_dict())
    theirs = experts(x)
    FAMILY.prepare(network, fake=True)
    torch.testing.assert_close(experts(x), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 16, 28])
def test_the_distilled_models_levels_are_their_schedulers(tmp_path: Path, steps: int) -> None:
    theirs = FlowMatchLCMScheduler(shift=6.0)
    theirs.save_pretrained(tmp_path / "scheduler")
    theirs.set_timesteps(steps, mu=1.15)
    (tmp_path / "model_index.json").write_text('{"text_encoder_4": ["transformers", "LlamaForCausalLM"]}')
    ours = [point.sigma for point in FAMILY.path(PipelineFolder(tmp_path), (4, 8, 8)).grid(steps)]
    torch.testing.assert_close(torch.tensor(ours), theirs.sigmas, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (1024, 1024), (768, 1344), (16, 48), (720, 1280)])
def test_the_stock_pipeline_keeps_a_size(height: int, width: int) -> None:
    """Read off the latents that it refuses, by its own message."""
    pipe, latents = hidream(), torch.zeros(1, 4, height // 2, width // 2)
    with pytest.raises(ValueError, match=r"Unexpected latents shape"):
        pipe("a", height=height, width=width, latents=latents, max_sequence_length=16)
    for key, value in FAMILY.stock_settings(pipe, height, width).items():
        setattr(pipe, key, value)
    with pytest.raises(ValueError, match=rf"expected \(1, 4, {height // 2}, {width // 2}\)"):
        pipe("a", height=height, width=width, latents=torch.zeros(1, 4, 2, 2), max_sequence_length=16)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hidream-dev", {"guidance": 5.0}, "this hidream model is distilled to need no guidance"),
        ("hidream", {"height": 32, "width": 36}, "16 x 18 latents are more than the 16 x 16"),
        ("hidream", {"height": 48, "width": 48, "sigmas": (1.0, 0.5)}, "this family has a path of its own"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path: Path, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assert Diffusers(str(save(name, tmp_path)), **settings).path


def test_images_that_are_too_large_are_refused(tmp_path: Path) -> None:
    policy: Any = recipe(save("hidream", tmp_path)).model.load(Runtime())
    assert policy.encode_images(torch.rand(1, 3, 48, 48)).shape == (1, 4, 24, 24)
    with pytest.raises(ConfigError, match=r"^model\.height, model\.width: 16 x 18 latents"):
        policy.encode_images(torch.rand(1, 3, 32, 36))


def test_a_folder_without_llama_is_refused(tmp_path: Path) -> None:
    folder = save("hidream", tmp_path)
    index = folder / "model_index.json"
    parts = {key: value for key, value in json.loads(index.read_text()).items() if not key.endswith("_4")}
    index.write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match=r"no text_encoder_4 in model_index\.json: .* save_pretrained\(FOLDER\)"):
        assert Diffusers(str(folder)).path


@pytest.mark.slow
def test_a_snippet_draws_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("hidream", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a cat\na dog\na fox\n")
    sets = [
        f"model.base={json.dumps(str(folder))}",
        *("model.height=16", "model.width=16", "data.held_out_share=0.3", 'rewards={jpeg={kind="jpeg"}}'),
        *("plan.steps=2", "train.iterations=1", "train.prompts=1", "train.group_size=2", "train.updates=1"),
        *("evaluate.every=1", "evaluate.steps=2", "device=cpu", "precision=fp32", "threads=1", "evaluate.prompts=1"),
        *("evaluate.guided=[]", "model.embeddings=encode"),
    ]
    trained = command("train", "hidream-i1-full/awm", "--name", "mine", sets=sets)
    assert trained.code == 0, trained.err
    drawn = command("sample", "mine", "a cat", "--out", "ours")
    script = command("sample", "mine", "a cat", "--snippet")
    assert (drawn.code, script.code) == (0, 0), drawn.err + script.err
    assert "pipe.default_sample_size = 8.0" in script.out
    names: dict[str, Any] = {}
    exec(script.out.replace('image.save("image.png")', ""), names)
    ours = Image.open(drawn.out.strip()).resize((16, 16), Image.Resampling.NEAREST)
    difference = torch.frombuffer(bytearray(ours.tobytes()), dtype=torch.uint8).int()
    difference -= torch.frombuffer(bytearray(names["image"].tobytes()), dtype=torch.uint8).int()
    assert difference.abs().max() <= 1
