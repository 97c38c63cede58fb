"""Adapters that other programs wrote: applied as diffusers applies them, or refused by the word for what they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.core import CheckpointError, Prompt
from grpaint.core.runtime import Runtime
from tiny_adapters import TEXTS, adapted, difference, save_diffusers, save_peft, tensors_of
from tiny_pipelines import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd15", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sdxl", tmp_path_factory.mktemp("pipelines"))


def opened(folder: Path, start: Path, **settings: Any) -> DiffusersPolicy:
    spec: Any = {"height": 16, "width": 16, "lora": Lora(4, 12), **settings}
    return Diffusers(str(folder), start=str(start), **spec).load(Runtime())


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"attn2.to_q": 1, "attn2.to_v": 2}},
    "rank_pattern": {"rank_pattern": {"attn1.to_q": 2, "attn2.to_v": 3}, "alpha_pattern": {"attn1.to_q": 3}},
    "rslora of ranks": {"use_rslora": True, "rank_pattern": {"attn1.to_q": 2}},
    "fewer layers": {"target_modules": ["to_q"]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [save_diffusers, save_peft])
def test_an_adapter_has_the_strength_that_it_has_in_diffusers(
    folder: Path, tmp_path: Path, write: Any, kind: str
) -> None:
    pipe = adapted(folder, **KINDS[kind])
    policy = opened(folder, write(pipe, tmp_path / "lora"))
    assert difference(policy, pipe) < 1e-6
    pipe.disable_lora()
    assert difference(policy, pipe) > 1e-3


def test_a_folders_adapter_file_may_be_named(folder: Path, tmp_path: Path) -> None:
    pipe = adapted(folder, use_rslora=True)
    for saved in (save_peft(pipe, tmp_path / "peft"), save_diffusers(pipe, tmp_path / "diffusers")):
        (file,) = saved.glob("*.safetensors")
        assert difference(opened(folder, file), pipe) < 1e-6


def kohya(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = convert_state_dict_to_kohya({f"unet.{name}": tensor for name, tensor in tensors.items()})
    return {name: torch.tensor(2.0) if name.endswith(".alpha") else tensor for name, tensor in renamed.items()}


def by_processor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers 0.14."""
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, matrix = name.partition(".lora_")
        attention, _, target = layer.removesuffix(".0").rpartition(".")
        end = {"A.weight": "down.weight", "B.weight": "up.weight"}[matrix]
        renamed[f"unet.{attention}.processor.{target}_lora.{end}"] = tensor
    return renamed


def by_linear(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers 0.17 to 0.21."""
    return {
        f"unet.{name}".replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("rename", [kohya, by_processor, by_linear])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_older_names_are_read_as_diffusers_reads_them(
    request: pytest.FixtureRequest, tmp_path: Path, rename: Any, name: str
) -> None:
    folder = request.getfixturevalue("folder" if name == "sd15" else "xl")
    pipe = adapted(folder, lora_alpha=4)
    save_file(rename(tensors_of(pipe)), tmp_path / "lora.safetensors")
    pipe.unet.delete_adapters("default")
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    policy = opened(folder, tmp_path / "lora.safetensors")
    assert difference(policy, pipe) < 1e-6
    pipe.disable_lora()
    assert difference(policy, pipe) > 1e-3


def test_an_adapter_of_lower_rank_is_trained_at_the_rank_of_the_recipe(folder: Path, tmp_path: Path) -> None:
    pipe = adapted(folder, r=2)
    policy = opened(folder, save_peft(pipe, tmp_path / "lora"))
    assert difference(policy, pipe) < 1e-6
    cond = policy.encode([Prompt(text) for text in TEXTS])
    policy.predict(policy.noise((1,), range(2)), policy.path.grid(4)[1], cond).x0.square().sum().backward()
    for name, parameter in policy.weights.trainable.items():
        if ".lora_B." in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().amax(0).min() > 0, name  # of each of its four columns


REFUSED: list[tuple[dict[str, Any], dict[str, Tensor], str]] = [
    ({"use_dora": True}, {}, "of the kind DoRA; .* Merge it into its base"),
    ({"peft_type": "LOHA"}, {}, "of the kind 'LOHA'"),
    ({"lora_bias": True}, {}, "of the kind LoRA with biases"),
    ({"modules_to_save": ["conv_in"]}, {}, "of the kind whole layers beside LoRA"),
    ({"lora_alpha": "evil.py:f"}, {}, "lora_alpha = 'evil.py:f', not a number"),
    ({"alpha_pattern": {"to_q": [1]}}, {}, "alpha_pattern = .* not a table of numbers"),
    ({"alpha_pattern": {"(": 1}}, {}, "cannot open it as an adapter: PatternError|error:"),
    ({}, {"base_model.model.mid_block.x.lora_magnitude_vector": torch.ones(4)}, "of the kind DoRA"),
    ({}, {"lora_unet_mid_block.dora_scale": torch.ones(4)}, "of the kind DoRA"),
    ({}, {"lora_unet_mid_block.lokr_w1": torch.ones(4, 4)}, "of the kind LoKr"),
    ({}, {"lora_unet_mid_block.hada_w1_a": torch.ones(4, 4)}, "of the kind LoHa"),
    ({}, {"lora_unet_mid_block.diff": torch.ones(4, 4)}, "of the kind whole differences of weights"),
    ({}, {"lora_unet_mid_block.diff_b": torch.ones(4)}, "of the kind whole differences of weights"),
    ({}, {"lora_unet_mid_block.a1.weight": torch.ones(4, 4)}, "of the kind GLoRA"),
    ({}, {"lora_unet_mid_block.on_input": torch.ones(4)}, "of the kind IA3"),
    ({}, {"base_model.model.mid_block.vera_lambda_b": torch.ones(4)}, "of the kind VeRA"),
    ({}, {"emb_params": torch.ones(4, 4)}, "of the kind textual inversion"),
    ({}, {"lora_unet_mid_block.lora_mid.weight": torch.ones(4, 4)}, "of the kind LoCon with three"),
]


@pytest.mark.parametrize(("settings", "tensors", "message"), REFUSED)
def test_other_kinds_are_refused_by_their_names(
    folder: Path, tmp_path: Path, settings: dict[str, Any], tensors: dict[str, Tensor], message: str
) -> None:
    saved = save_peft(adapted(folder), tmp_path / "lora")
    config, file = saved / "adapter_config.json", saved / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    save_file(load_file(file) | tensors, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(folder, saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "ours", "message"),
    [
        ({"r": 8}, {}, "rank 8 at .*, and model.lora.rank = 4. Set it to 8"),
        ({"target_modules": ["to_q", "ff.net.0.proj"]}, {}, r"not among model.lora.targets, .* = \['proj', 'to_q'\]"),
        ({"target_modules": ["conv1"]}, {}, r"for example .*conv1 is no linear layer of this network"),
        ({}, {"lora": None}, "no model.lora is set"),
    ],
)
def test_ranks_and_layers_that_the_recipe_lacks_are_named(
    folder: Path, tmp_path: Path, settings: dict[str, Any], ours: dict[str, Any], message: str
) -> None:
    saved = save_diffusers(adapted(folder, **settings), tmp_path / "lora")
    with pytest.raises(CheckpointError, match=message):
        opened(folder, saved, **ours)


def test_adapters_of_text_encoders_and_torch_files_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = {f"unet.{name}": tensor for name, tensor in tensors_of(adapted(folder)).items()}
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    text_layer = {f"{text}.lora_A.weight": torch.ones(4, 32), f"{text}.lora_B.weight": torch.ones(32, 4)}
    save_file(tensors | text_layer, tmp_path / "both.safetensors")
    with pytest.raises(CheckpointError, match="also adapts text encoders"):
        opened(folder, tmp_path / "both.safetensors")
    (tmp_path / "torch").mkdir()
    torch.save(tensors, tmp_path / "torch/pytorch_lora_weights.bin")
    torch.save(tensors, tmp_path / "torch/A.PTH")
    torch.save(tensors, tmp_path / "torch/named.safetensors")
    for start in (tmp_path / "torch", *(tmp_path / "torch").iterdir()):
        with pytest.raises(CheckpointError, match=r"a torch file.* save it as safetensors"):
            opened(folder, start)


@pytest.mark.parametrize("damage", [lambda tensor: tensor * torch.nan, lambda tensor: tensor.to(torch.int8)])
def test_factors_that_are_no_finite_numbers_are_refused(folder: Path, tmp_path: Path, damage: Any) -> None:
    saved = save_peft(adapted(folder), tmp_path / "lora")
    file = saved / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: damage(tensors[name])}, file)
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: .*: its factors are no finite numbers"):
        opened(folder, saved)


def test_a_file_of_peft_without_its_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    saved = save_peft(adapted(folder), tmp_path / "lora")
    (saved / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_config.json beside it, which has its strength"):
        opened(folder, saved)
