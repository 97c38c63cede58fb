"""Frozen adapters: of base, reference and behaviour alike, applied as diffusers applies them, and never changed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpaint.backends.adapters import Lora, merged_state
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.backends.frozen import FrozenAdapter
from grpaint.core import CheckpointError, ConfigError, Prompt
from grpaint.core.runtime import Runtime
from grpaint.loops import train
from grpaint.recipe.build import build, dump
from grpaint.run.unsaved import UnsavedLoop
from tiny_adapters import TEXTS, adapted, difference, save_diffusers, save_peft, stock_latents
from tiny_pipelines import recipe, save, stock

WIDE = ["to_q", "to_k", "conv1", "proj_in", "time_emb_proj"]  # convolutions too, as LCM's adapter has them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sdxl", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def turbo(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of layers of both kinds, and of two ranks."""
    pipe = adapted(folder, target_modules=WIDE, rank_pattern={"to_k": 2})
    return save_diffusers(pipe, tmp_path_factory.mktemp("turbo"))


@pytest.fixture(scope="module")
def other(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_peft(adapted(folder, target_modules=["to_q"], r=2), tmp_path_factory.mktemp("other") / "peft")


def opened(folder: Path, *frozen: FrozenAdapter, **settings: Any) -> DiffusersPolicy:
    spec: Any = {"height": 16, "width": 16, "lora": Lora(4, 12), **settings}
    return Diffusers(str(folder), frozen=frozen, **spec).load(Runtime())


def fused(folder: Path, *adapters: tuple[Path, float]) -> Any:
    """A stock pipeline of diffusers with adapters fused into it."""
    pipe = stock(folder)
    for path, weight in adapters:
        if path.name.startswith("adapter_model"):  # diffusers does not read peft's settings beside the file: 8 / 2
            tensors = {f"unet.{name.removeprefix('base_model.model.')}": t for name, t in load_file(path).items()}
            pipe.load_lora_weights({name: 4 * t if ".lora_B." in name else t for name, t in tensors.items()})
        else:
            pipe.load_lora_weights(path.parent, weight_name=path.name)
        pipe.fuse_lora(lora_scale=weight)
        pipe.unload_lora_weights()
    return pipe


@pytest.mark.parametrize("lora", [Lora(4, 12), None], ids=["lora", "full"])
def test_frozen_adapters_draw_as_in_diffusers_where_they_are_fused(
    folder: Path, turbo: Path, other: Path, lora: Lora | None
) -> None:
    files = turbo / "pytorch_lora_weights.safetensors", other / "adapter_model.safetensors"
    policy = opened(
        folder, FrozenAdapter(str(turbo), "turbo", 0.7), FrozenAdapter(str(other), "de-distil", -0.5), lora=lora
    )
    both = fused(folder, (files[0], 0.7), (files[1], -0.5))
    assert difference(policy, both) < 2e-6
    assert difference(policy, stock(folder)) > 1e-3
    with policy.weights.use("reference"):
        assert difference(policy, both) < 2e-6
        with policy.weights.with_frozen(["de-distil"]):
            assert difference(policy, fused(folder, (files[1], -0.5))) < 2e-6
    with policy.weights.with_frozen([]):
        assert difference(policy, stock(folder)) < 2e-6
    assert difference(policy, both) < 2e-6


def frozen_bytes(policy: DiffusersPolicy) -> dict[str, bytes]:
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in policy.weights.module.state_dict().items()
        if ".frozen_" in name
    }


@pytest.mark.parametrize(
    "model",
    [{"checkpointing": True}, {"lora": None}],
    ids=["lora", "full"],
)
def test_no_byte_of_a_frozen_adapter_changes_in_training(folder: Path, turbo: Path, model: dict[str, Any]) -> None:
    frozen = ({"path": str(turbo), "name": "turbo"}, {"path": str(turbo), "name": "off", "training": False})
    settings = recipe(folder, frozen=frozen, **model)
    settings = replace(settings, train=replace(settings.train, prompts=1, group_size=6))
    policy = settings.model.load(Runtime())
    assert isinstance(policy, DiffusersPolicy)
    with policy.weights.use("reference"):
        reference = stock_latents(policy)
    before, trained = frozen_bytes(policy), {n: p.detach().clone() for n, p in policy.weights.trainable.items()}
    assert len(before) > 10
    loop = UnsavedLoop(settings, policy)
    loop.turns = 5
    train(settings, loop)
    assert loop.steps == 5
    assert frozen_bytes(policy) == before
    assert any(not torch.equal(trained[name], p) for name, p in policy.weights.trainable.items())
    assert not any(p.requires_grad for name, p in policy.weights.module.named_parameters() if ".frozen_" in name)
    with policy.weights.use("reference"):
        assert torch.equal(stock_latents(policy), reference)  # with turbo on and off switched off, as before
    assert not torch.equal(stock_latents(policy), reference)


def test_what_is_trained_is_saved_without_frozen_adapters(folder: Path, turbo: Path, tmp_path: Path) -> None:
    for lora in (Lora(4, 12), None):
        policy = opened(folder, FrozenAdapter(str(turbo), "turbo"), lora=lora)
        plain = opened(folder, lora=lora)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.01)
        tensors, header = policy.export("current")
        assert tensors.keys() == plain.export("current")[0].keys()
        assert policy.weights.trainable.keys() == plain.weights.trainable.keys()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors", header)
        again = opened(folder, FrozenAdapter(str(turbo), "turbo"), lora=lora, start=str(tmp_path / "x.safetensors"))
        assert ((stock_latents(again) - (mine := stock_latents(policy))).norm() / mine.norm()).item() < 1e-5
        pipe = stock(folder)
        pipe.unet.load_state_dict(merged_state(policy.weights.module))
        assert difference(policy, pipe) < 5e-6


def test_prediction_is_that_of_frozen_weights_on_every_set(folder: Path, turbo: Path) -> None:
    policy, plain = opened(folder, FrozenAdapter(str(turbo), "turbo")), opened(folder)
    policy.blend("behaviour", 0.0)
    cond = policy.encode([Prompt(text) for text in TEXTS])
    x, here = policy.noise((1,), range(2)), policy.path.grid(4)[1]
    sets = [policy.predict(x, here, cond, weights).x0 for weights in ("current", "behaviour", "average", "reference")]
    assert all(torch.equal(each, sets[0]) for each in sets)
    assert not torch.allclose(sets[0], plain.predict(x, here, cond).x0, atol=1e-3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    base = plain.predict(x, here, cond, "reference").x0
    with policy.weights.use("reference"), policy.weights.with_frozen([]):  # the trained adapter stays off inside
        assert torch.equal(policy.predict(x, here, cond).x0, base)
    assert torch.equal(policy.predict(x, here, cond, "reference").x0, sets[0])
    assert not torch.allclose(policy.predict(x, here, cond).x0, sets[0], atol=1e-3)
    with pytest.raises(KeyError, match="there is no frozen adapter other"):
        policy.weights.switch_frozen(["other"])


def test_the_table_survives_run_toml(turbo: Path, folder: Path) -> None:
    table = [{"path": str(turbo), "name": "turbo"}]
    model, plain = build(Diffusers, {"base": str(folder), "frozen": table}, "model")
    assert model.frozen == (FrozenAdapter(str(turbo), "turbo"),)
    assert plain["frozen"] == [{"path": str(turbo), "name": "turbo", "weight": 1.0, "training": True}]
    assert build(Diffusers, {key: value for key, value in dump(model).items() if key != "kind"}, "model")[0] == model
    assert "frozen turbo x 1" in model.about


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"path": "a", "name": "x"}, {"path": "b", "name": "x"}], r'model.frozen: two adapters have the name "x"'),
        ([{"path": "a", "name": "x", "weight": float("nan")}], r"model.frozen\[0\].weight = nan: must be a number"),
        ([{"path": "a", "name": "x", "weight": float("inf")}], r"model.frozen\[0\].weight = inf: must be finite"),
        ([{"path": "a", "name": "x.y"}], r'model.frozen\[0\].name = "x.y": must have 1 to 60 letters'),
        ([{"path": "", "name": "x"}], r"model.frozen\[0\].path must name a LoRA"),
        ([{"path": "a"}], r"model.frozen\[0\].name is missing"),
    ],
)
def test_tables_that_are_wrong_are_refused(folder: Path, tables: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(Diffusers, {"base": str(folder), "frozen": tables}, "model")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_adapter_of_the_base_are_refused(folder: Path, turbo: Path, tmp_path: Path) -> None:
    sd15 = save("sd15", tmp_path)
    flux = {"transformer.blocks.0.to_q.lora_A.weight": torch.ones(4, 32)}
    flux |= {"transformer.blocks.0.to_q.lora_B.weight": torch.ones(32, 4)}
    save_file(flux, tmp_path / "flux.safetensors")
    save_file({"a.weight": torch.ones(2)}, tmp_path / "none.safetensors")
    save_file({"lora_unet_mid_block.lokr_w1": torch.ones(4, 4)}, tmp_path / "lokr.safetensors")
    save_file(flux, tmp_path / "family.safetensors", {"family": "flux"})
    cases = [
        (folder, tmp_path / "missing.safetensors", "no such file or folder. Download it"),
        (folder, tmp_path / "none.safetensors", "no LoRA: none of its tensors is of one"),
        (folder, tmp_path / "lokr.safetensors", "of the kind LoKr .*; .* Merge it into its base"),
        (folder, tmp_path / "flux.safetensors", "made for another base: 1 of its 1 layers"),
        (folder, tmp_path / "family.safetensors", 'an adapter for "flux", and the base is of the family "sdxl"'),
        (sd15, turbo, r"made for another base: \d+ of its \d+ layers .*; for example "),
    ]
    for base, path, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            opened(base, FrozenAdapter(str(path), "x"))
        assert "\n" not in str(caught.value)
