"""What is written for other programs is what was trained: their own loaders draw the same images."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.testing
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grpaint.backends.adapters import Lora, merged_state
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.cli import app
from grpaint.commands.export import formats as exporting
from grpaint.commands.sample import provenance
from grpaint.core import CheckpointError, ConfigError
from grpaint.core.runtime import Runtime
from grpaint.recipe.deployment import with_frozen
from grpaint.storage.files import read_weights, write_weights
from tiny_pipelines import PIPELINES, recipe, save, side
from tiny_runs import trained

FAMILIES = [name for name in PIPELINES if name != "sd15-v"]


def tuned(folder: Path) -> DiffusersPolicy:
    """A policy whose adapter has left its zeros."""
    tokens = 16 if folder.name in ("sd3", "flux-dev", "flux-schnell") else 0
    pixels = side(folder.name)
    spec = Diffusers(str(folder), height=pixels, width=pixels, tokens=tokens, lora=Lora(rank=4, alpha=12))
    policy = spec.load(Runtime())
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return policy


TARGETS = ("diffusers", "comfyui", "merged")
EXPORTS = [(name, target) for name in FAMILIES for target in TARGETS if (name, target) != ("hunyuan-image", "comfyui")]


@pytest.mark.parametrize(("name", "target"), EXPORTS)
def test_an_export_draws_the_same(tmp_path: Path, name: str, target: exporting.Target) -> None:
    policy = tuned(save(name, tmp_path))
    off = exporting.export(policy, {"stage": "train"}, 2, target, tmp_path / "out")
    assert off < 1e-4
    start = policy.noise((0, 0, "export"), range(2))
    with policy.weights.use("reference"):
        base = policy.stock(exporting.TEXTS, start, 2)
    assert (policy.stock(exporting.TEXTS, start, 2) - base).norm() / base.norm() > 5e-3  # it could have failed
    assert not list(tmp_path.glob("*.part"))
    if target == "merged":
        about = json.loads((tmp_path / "out/grpaint.json").read_text())
    else:
        with safe_open(tmp_path / "out" / exporting.ADAPTER, "pt") as file:
            about = json.loads(file.metadata()["grpaint"])
    assert about["base"].endswith(name)
    assert len(about["base_sha256"]) == 64
    assert about["recipe"] == {"stage": "train"}
    assert about["license"] is None


def test_an_export_that_draws_something_else_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tuned(save("sdxl", tmp_path))
    plain = exporting.kohya
    monkeypatch.setattr(
        exporting, "kohya", lambda tensors, network: plain({k: 2 * v for k, v in tensors.items()}, network)
    )
    with pytest.raises(CheckpointError, match="reloaded, it draws other images"):
        exporting.export(policy, {}, 2, "comfyui", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.part"))


# Layers of SD 1.x and SDXL as diffusers' converter names them, which ComfyUI (comfy/lora.py) and A1111 map.
KOHYA = {
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": (
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
    ),
    "mid_block.attentions.0.transformer_blocks.9.attn1.to_out.0": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_9_attn1_to_out_0"
    ),
    "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_k": (
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_1_attn2_to_k"
    ),
}


@pytest.mark.parametrize("layer", KOHYA)
def test_kohya_names(layer: str) -> None:
    theirs = KOHYA[layer]
    pair = {f"unet.{layer}.lora_A.weight": torch.zeros(4, 8), f"unet.{layer}.lora_B.weight": torch.ones(6, 4)}
    renamed = exporting.kohya(pair, "unet")
    assert {key: tuple(tensor.shape) for key, tensor in renamed.items()} == {
        f"{theirs}.lora_down.weight": (4, 8),
        f"{theirs}.lora_up.weight": (6, 4),
        f"{theirs}.alpha": (),
    }
    assert renamed[f"{theirs}.alpha"] == 4
    assert torch.equal(renamed[f"{theirs}.lora_up.weight"], torch.ones(6, 4))


def test_a_transformer_keeps_its_names() -> None:
    pair = {"transformer.blocks.0.to_q.lora_A.weight": torch.zeros(4, 8)}
    assert exporting.kohya(pair, "transformer") == pair


@pytest.mark.parametrize(("name", "layer"), [("sdxl", "add_embedding.linear_1"), ("kolors", "encoder_hid_proj")])
def test_layers_that_no_reader_names_are_refused_for_comfyui(tmp_path: Path, name: str, layer: str) -> None:
    spec = Diffusers(str(save(name, tmp_path)), height=16, width=16, lora=Lora(4, 12, ("to_q", layer)))
    with pytest.raises(ConfigError, match=rf"for comfyui: .*{layer}; use --for diffusers or merged"):
        exporting.export(spec.load(Runtime()), {}, 1, "comfyui", tmp_path / "out")


def test_an_export_under_kohyas_names_is_a_start(tmp_path: Path) -> None:
    policy = tuned(save("sdxl", tmp_path))
    exporting.export(policy, {}, 1, "comfyui", tmp_path / "out")
    started = Diffusers(policy.spec.base, lora=policy.spec.lora, start=str(tmp_path / "out" / exporting.ADAPTER))
    for name, parameter in started.load(Runtime()).weights.trainable.items():
        torch.testing.assert_close(parameter, policy.weights.trainable[name])


def test_an_unwritable_place_is_refused_before_drawing(tmp_path: Path) -> None:
    policy = tuned(save("sdxl", tmp_path))
    (tmp_path / "file").touch()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    policy.stock = stop
    with pytest.raises(KeyboardInterrupt):
        exporting.export(policy, {}, 1, "diffusers", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(ConfigError, match=r"--out .*file/out: cannot be written \(Not a directory\); name another"):
        exporting.export(policy, {}, 1, "diffusers", tmp_path / "file/out")


@pytest.mark.parametrize("target", ["diffusers", "comfyui"])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux-dev"])
def test_layers_of_a_file_are_matched(tmp_path: Path, name: str, target: exporting.Target) -> None:
    policy = tuned(save(name, tmp_path))
    exporting.export(policy, {}, 1, target, tmp_path / "out")
    match = exporting.match(policy, tmp_path / "out" / exporting.ADAPTER)
    assert not match.unmatched
    assert 2 * len(match.matched) == len(policy.weights.trainable)
    tensors = load_file(tmp_path / "out" / exporting.ADAPTER)
    renamed = {key.replace("_0_", "_9_").replace("blocks.0", "blocks.9"): tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / "other.safetensors")
    assert exporting.match(policy, tmp_path / "other.safetensors").unmatched


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration on a tiny SDXL, in a folder of its own."""
    root = tmp_path_factory.mktemp("run")
    return trained(root, str(save("sdxl", root)))


def command(*words: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, list(words))


def test_a_foreign_adapter_is_described_in_a_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    kronecker = {f"lora_unet_{layer}.lokr_{part}": torch.ones(2, 2) for layer in range(9) for part in ("w1", "w2")}
    other_base = {f"unet.other.{layer}.lora_{part}.weight": torch.ones(2, 2) for layer in range(9) for part in "AB"}
    (tmp_path / "peft").mkdir()
    save_file(kronecker, tmp_path / "peft/adapter_model.safetensors")
    save_file(other_base, tmp_path / "other.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "whole.safetensors")
    for adapter, message in (
        ("peft", r"of the kind LoKr \(18 tensors: (\S+, ){3}\.\.\); only plain LoRA"),
        ("whole.safetensors", "no LoRA, by the names of its tensors"),
    ):
        with pytest.raises(CheckpointError, match=message) as refusal:
            typer.testing.CliRunner().invoke(
                app, ["export", "mine", "--check", str(tmp_path / adapter)], catch_exceptions=False
            )
        assert "\n" not in str(refusal.value)
    result = command("export", "mine", "--check", str(tmp_path / "other.safetensors"))
    assert result.exit_code == 1
    assert result.output.splitlines()[-2:] == [
        "0 layers match, 9 do not",
        "not in this model: unet.other.0, unet.other.1, unet.other.2 and 6 more",
    ]


def test_sample_repeats_a_picture_from_run_export_and_snippet(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    first = command("sample", "mine", "a red circle", "a blue square", "--seed", "5", "--out", "first")
    assert first.exit_code == 0, first.output
    files = first.output.split()
    record = json.loads(Image.open(files[1]).info["grpaint"])
    assert (record["prompt"], record["seed"], record["steps"], record["guidance"]) == ("a blue square", 6, 3, 3.0)
    again = command("sample", "--like", files[1], "--out", "again")
    assert Image.open(again.output.strip()).tobytes() == Image.open(files[1]).tobytes()

    written = command("export", "mine", "--for", "diffusers", "--out", "out")
    assert written.exit_code == 0, written.output
    assert "latents differ by" in written.output
    other = command("sample", f"out/{exporting.ADAPTER}", "a blue square", "--seed", "6", "--out", "exported")
    assert Image.open(other.output.strip()).tobytes() == Image.open(files[1]).tobytes()
    assert "drawn with other weights" in str(command("sample", "out", "--like", files[1]).exception or "")

    script = command("sample", f"out/{exporting.ADAPTER}", "a blue square", "--seed", "6", "--snippet").output
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    ours = torch.tensor(list(Image.open(files[1]).resize((32, 32), Image.Resampling.NEAREST).tobytes())).float()
    theirs = torch.tensor(list(Image.open("image.png").tobytes())).float()
    assert (ours - theirs).abs().max() <= 1


def test_a_picture_or_a_file_brings_no_code(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nX = int\n")
    files = command("sample", "mine", "a red circle", "--out", "honest").output.split()
    record = json.loads(Image.open(files[0]).info["grpaint"])
    model = {**record["model"], "family": "evil.py:X"}
    sampler = {"kind": "evil.py:X"}
    for facts, words in (({"sampler": sampler}, "asks for code"), ({"model": model}, "drawn with model.")):
        Image.open(files[0]).save("bad.png", pnginfo=provenance.png_metadata({**record, **facts}))
        assert words in str(command("sample", "--like", "bad.png").exception)
    tensors, header = read_weights(next(Path("runs/mine/checkpoints").iterdir()))
    about = {"recipe": {"model": model}}
    write_weights(Path("bad.safetensors"), tensors, header | {"grpaint": json.dumps(about)})
    assert "asks for code" in str(command("sample", "bad.safetensors", "a").exception)
    assert not Path("ran").exists()
    for text, words in (
        ("no json", "not JSON"),
        ("{}", "its metadata lacks the settings of its model"),
        ('{"model": {}}', "source is missing"),
        ("[]", "must be a JSON object"),
    ):
        info = PngInfo()
        info.add_text("grpaint", text)
        Image.new("RGB", (4, 4)).save("odd.png", pnginfo=info)
        assert words in str(command("sample", "--like", "odd.png").exception)
    assert "drawn with model.guidance" in str(
        command("sample", "--like", files[0], "--set", "model.guidance=2.0").exception
    )
    honest = Path(files[0]).read_bytes()
    again = command("sample", "--like", files[0], "--out", "honest").stdout.split()
    assert again == [files[0].replace(".png", "-2.png")]
    assert Path(files[0]).read_bytes() == honest  # a picture is never written over


def test_an_adapter_on_a_whole_start_is_merged_alone(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    whole = Diffusers(str(folder)).load(Runtime())
    write_weights(tmp_path / "whole.safetensors", *whole.export("current"))
    spec = Diffusers(str(folder), lora=Lora(4), start=str(tmp_path / "whole.safetensors"))
    write_weights(tmp_path / "adapter.safetensors", *spec.load(Runtime()).export("current"))
    policy = spec.from_file(str(tmp_path / "adapter.safetensors")).load(Runtime())
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.ones_like(parameter)
    with pytest.raises(ConfigError, match=r"sits on the whole network .*; use --for merged"):
        exporting.export(policy, {}, 1, "diffusers", tmp_path / "out")
    assert exporting.export(policy, {}, 1, "merged", tmp_path / "out") < 1e-4


@pytest.mark.parametrize("settings", [{"lora": Lora(4, 12)}, {}], ids=["lora", "whole"])
def test_half_precision_keeps_a_small_change(tmp_path: Path, settings: dict[str, object]) -> None:
    policy = Diffusers(str(save("sd15", tmp_path)), **settings).load(Runtime(precision="bf16"))  # type: ignore[arg-type]
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    exporting.export(policy, {}, 1, "merged", tmp_path / "out")
    written = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    expected = merged_state(policy.pipe.unet)
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor.float(), rtol=0, atol=1e-6)


def test_impossible_exports_and_repeats_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    Image.new("RGB", (4, 4)).save("plain.png")
    for words, message in [
        (["export", "mine", "--for", "webui"], "--for webui: there are diffusers, comfyui, merged"),
        (["export", "mine", "--out", str(run)], "exists already"),
        (["sample", "--like", "plain.png"], "does not say how it was drawn"),
        (["sample", "--like", "mine.toml"], "not a picture that can be read"),
        (["sample", "mine"], "and a caption in quotes"),
        (["sample", "mine", "a", "--snippet", "--set", "evaluate.sampler.kind=cps"], "draws with the ODE alone"),
    ]:
        with pytest.raises(ConfigError, match=message):
            typer.testing.CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_snippet_says_the_prediction_that_was_set(tmp_path: Path) -> None:
    folder = save("sd15", tmp_path)
    plain, explicit = (Diffusers(str(folder), prediction=kind).load(Runtime()) for kind in ("auto", "v"))
    assert "prediction_type" not in provenance._scheduler_lines(plain)
    pipe = plain.pipe
    exec(provenance._scheduler_lines(explicit), {"pipe": pipe})
    assert pipe.scheduler.config.prediction_type == explicit.pipe.scheduler.config.prediction_type == "v_prediction"


def test_steps_that_stock_ddim_misses_have_no_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = recipe(save("sd15-v", tmp_path))
    policy = original.model.load(Runtime())
    for steps in (20, 30):
        one = with_frozen(dataclasses.replace(original.evaluate, steps=steps, guidance=1.0), ())
        if steps == 20:
            assert "pipe(" in provenance.diffusers_script(policy, one, "a", 0, tmp_path / "none")
        else:
            with pytest.raises(ConfigError, match="a number of steps that divides the scheduler's num_train_timesteps"):
                provenance.diffusers_script(policy, one, "a", 0, tmp_path / "none")
