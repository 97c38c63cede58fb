"""One .safetensors file in the layout of a model's first code is the model of its folder, or is refused in a line."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, get_args

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from grpaint.backends import base_model
from grpaint.backends.adapters import Lora
from grpaint.backends.diffusers import Diffusers, DiffusersPolicy
from grpaint.backends.embeddings import text_parts_hash
from grpaint.backends.single_file import describe_unet, read_single_file
from grpaint.backends.synthetic import pipelines as random_weights
from grpaint.commands.export import formats as exporting
from grpaint.core import CheckpointError, ConfigError, Prompt
from grpaint.core.runtime import Runtime
from grpaint.rollout.rollout import Plan, roll
from grpaint.rollout.window import Closed
from original_layout import open_clip, original, unet, vae
from tiny_flows import chroma, flux, flux2, flux2_dev, lumina2, sana, sd3
from tiny_parts import clip_config
from tiny_pipelines import PIPELINES, TOKENS, save, side
from tiny_qwen_flows import qwen_image21
from tiny_unets import sd15, ssd1b

PROMPTS = [Prompt("a red circle"), Prompt("")]


def sd2() -> Any:
    pipe = sd15()
    torch.manual_seed(3)
    pipe.text_encoder = CLIPTextModel(clip_config(32)).eval()
    return pipe


def sd3_as_published() -> Any:
    """CLIP-L's pooled text goes in unprojected, as Stability AI's own code and files have it."""
    pipe = sd3()
    nn.init.eye_(pipe.text_encoder.text_projection.weight)
    return pipe


def sd2_layout(pipe: Any) -> dict[str, Tensor]:
    return unet(pipe.unet) | vae(pipe.vae) | open_clip(pipe.text_encoder, "cond_stage_model.model.")


def bare(pipe: Any) -> dict[str, Tensor]:
    return {name.removeprefix("model.diffusion_model."): t for name, t in unet(pipe.unet).items()}


def prefixed(pipe: Any) -> dict[str, Tensor]:
    return {f"model.diffusion_model.{name}": tensor for name, tensor in original(pipe).items()}


def lumina2_alike() -> Any:
    """With fewer heads for keys than for queries and two refining blocks, as the published network."""
    return lumina2(num_kv_heads=1, num_refiner_layers=2)


def lumina2_whole(pipe: Any) -> dict[str, Tensor]:
    """As ComfyUI's whole checkpoints: its text encoder is read from the folder."""
    encoder = {"text_encoders.gemma2_2b.transformer.model.norm.weight": torch.zeros(32)}
    return prefixed(pipe) | vae(pipe.vae, "vae.") | encoder


def names_of_diffusers(pipe: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}


Case = tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]], dict[str, Any], set[str]]
CASES: dict[str, Case] = {
    "sd1": (sd15, original, {}, {"unet", "vae", "text_encoder"}),
    "sd2": (sd2, sd2_layout, {"prediction": "epsilon"}, {"unet", "vae", "text_encoder"}),
    "unet-alone": (sd15, bare, {}, {"unet"}),
    "sdxl": (PIPELINES["sdxl"], original, {}, {"unet", "vae", "text_encoder", "text_encoder_2"}),
    "ssd-1b": (ssd1b, original, {}, {"unet", "vae", "text_encoder", "text_encoder_2"}),
    "sd3": (sd3_as_published, original, {}, {"transformer", "vae", *(f"text_encoder{n}" for n in ("", "_2", "_3"))}),
    "flux-dev": (lambda: flux(distilled=True), original, {}, {"transformer"}),
    "flux-schnell": (lambda: flux(distilled=False), original, {}, {"transformer"}),
    "flux2-klein": (flux2, original, {}, {"transformer"}),
    "flux2-klein-prefixed": (flux2, prefixed, {}, {"transformer"}),
    "flux2-dev": (flux2_dev, original, {}, {"transformer"}),
    "chroma": (chroma, original, {}, {"transformer"}),
    "qwen-image": (PIPELINES["qwen-image"], original, {}, {"transformer"}),
    "z-image": (PIPELINES["z-image"], original, {}, {"transformer"}),
    "hidream": (PIPELINES["hidream"], original, {}, {"transformer"}),
    "krea2": (PIPELINES["krea2"], original, {}, {"transformer"}),
    "lumina2": (lumina2_alike, original, {}, {"transformer"}),
    "lumina2-whole": (lumina2_alike, lumina2_whole, {}, {"transformer", "vae"}),
    "sana": (lambda: sana(qk_norm=None), original, {}, {"transformer"}),
    "qwen-image-2.1": (qwen_image21, original, {}, {"transformer"}),
    "qwen-image-2.1-bare": (qwen_image21, names_of_diffusers, {}, {"transformer"}),
}
WIDTHS = {"flux": {3072: 32}, "chroma": {3072: 32}, "lumina2": {2304: 32, 768: 16}}


@pytest.fixture(autouse=True)
def narrow_converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of diffusers' converters hold the published widths as constants; they run as they are, for ours."""
    for name, convert in vars(single_file_utils).items():
        if match := re.fullmatch(r"convert_(flux|chroma|lumina2)(_transformer_checkpoint)?_to_diffusers", name):
            monkeypatch.setattr(convert, "__code__", _with_constants(convert.__code__, WIDTHS[match[1]]))


def _with_constants(code: CodeType, new: Mapping[int, int]) -> CodeType:
    return code.replace(
        co_consts=tuple(
            _with_constants(value, new) if isinstance(value, CodeType) else new.get(value, value)
            for value in code.co_consts
        )
    )


def write(root: Path, name: str) -> tuple[Path, Path, dict[str, Any]]:
    """A pipeline's folder, and its single file beside a folder that lacks the weights of the file's parts."""
    make, layout, settings, held = CASES[name]
    pipe = make()
    pipe.save_pretrained(root / name)
    save_file(layout(pipe), root / f"{name}.safetensors")
    shutil.copytree(root / name, root / "rest")
    for part in held:
        for file in (root / "rest" / part).glob("*.safetensors"):
            file.unlink()
    return root / name, root / f"{name}.safetensors", {"config": str(root / "rest"), **settings}


def latents(policy: DiffusersPolicy) -> Tensor:
    return roll(policy, PROMPTS, 1, Plan(2, window=Closed()), iteration=0, seed=0).x0


def test_a_single_file_may_have_other_timesteps_than_its_settings(tmp_path: Path) -> None:
    _, file, settings = write(tmp_path, "sdxl")
    first = {
        spacing: [point.t for point in Diffusers(str(file), spacing=spacing, **settings).path.grid(4)[:-1]]
        for spacing in ("auto", "trailing", "distilled")
    }
    assert first == {
        "auto": [751, 501, 251, 1],
        "trailing": [999, 749, 499, 249],
        "distilled": [999, 759, 499, 259],
    }
    policy = Diffusers(str(file), spacing="trailing", height=16, width=16, **settings).load(Runtime())
    assert policy.pipe.scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("name", CASES)
def test_a_single_file_is_its_folder(tmp_path: Path, name: str) -> None:
    folder, file, settings = write(tmp_path, name)
    tokens = TOKENS.get(name, 96 if name.startswith("flux2") else 0)
    pixels = side("qwen-image-2.1" if name.startswith("qwen-image-2.1") else name)
    size: dict[str, Any] = {"height": pixels, "width": pixels, "guidance": 2.0, "tokens": tokens}
    theirs = Diffusers(str(folder), **size).load(Runtime())
    ours = Diffusers(str(file), **size, **settings).load(Runtime())
    parts = {name: part for name, part in theirs.pipe.components.items() if isinstance(part, nn.Module)}
    assert parts
    for part, network in parts.items():
        loaded = ours.pipe.components[part].state_dict()
        assert loaded.keys() == network.state_dict().keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in network.state_dict().items()), part
    # equal weights at other addresses may multiply in another order, which moves the last bits on some processors
    torch.testing.assert_close(latents(ours), latents(theirs), rtol=0, atol=1e-5)
    images = torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.encode_images(images), theirs.encode_images(images), rtol=0, atol=1e-5)
    assert set(ours.spec.origin.file_parts) == CASES[name][3]


def header(root: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> str:
    """A file with these tensors, of zeros."""
    file = root / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, file, metadata)
    return str(file)


@pytest.mark.parametrize(
    ("size", "family"),
    [
        ("sdxl", "SDXL, transformer layers 0 0 2 2 10 10 down, 10 in the middle, 10 10 10 2 2 2 0 0 0 up"),
        ("ssd-1b", "SSD-1B, transformer layers 0 0 2 2 4 4 down, 0 in the middle, 4 4 10 2 1 1 0 0 0 up"),
    ],
)
def test_block_layouts_of_full_size_are_distinguished(size: str, family: str) -> None:
    tensors = unet(random_weights.pipeline(random_weights.SIZES[size], device="meta").unet)
    shapes = {name.removeprefix("model.diffusion_model."): tuple(t.shape) for name, t in tensors.items()}
    assert describe_unet(shapes) == family


@pytest.mark.parametrize(
    ("name", "family", "about"),
    [
        ("sd1", "sd15", "Stable Diffusion 1.x"),
        ("ssd-1b", "sdxl", "SDXL-type, transformer layers 0 2 down, 0 in the middle, 2 1 0 0 up"),
        ("sd3", "sd3", "Stable Diffusion 3, 2 blocks"),
        ("flux-dev", "flux", "FLUX.1 dev, 1 + 1 blocks, guidance embedded"),
        ("flux-schnell", "flux", "FLUX.1 schnell, 1 + 1 blocks, no guidance embedded"),
        ("flux2-klein-prefixed", "flux2-klein", "FLUX.2 Klein, 1 + 1 blocks"),
        ("flux2-dev", "flux2", "FLUX.2 dev, 1 + 1 blocks"),
        ("chroma", "chroma", "Chroma, 1 + 1 blocks"),
        ("qwen-image", "qwen-image", "Qwen-Image, 2 blocks"),
        ("z-image", "z-image", "Z-Image, 1 blocks"),
        ("hidream", "hidream", "HiDream-I1, 1 + 1 blocks"),
        ("krea2", "krea2", "Krea 2, 1 blocks"),
        ("lumina2", "lumina2", "Lumina Image 2.0, 1 blocks"),
        ("lumina2-whole", "lumina2", "Lumina Image 2.0, 1 blocks"),
        ("sana", "sana", "SANA, 2 blocks"),
        ("qwen-image-2.1", "qwen-image-2.1", "Qwen-Image 2.1, 2 blocks"),
        ("qwen-image-2.1-bare", "qwen-image-2.1", "Qwen-Image 2.1, 2 blocks"),
    ],
)
def test_what_a_file_is_comes_from_its_header(tmp_path: Path, name: str, family: str, about: str) -> None:
    make, tensors, _, _ = CASES[name]
    save_file(tensors(make()), tmp_path / "a.safetensors")
    reading = read_single_file(str(tmp_path / "a.safetensors"))
    assert (reading.family, reading.about) == (family, about)


V_PRED, SPEC = {"v_pred": torch.zeros(0)}, "modelspec.prediction_type"


@pytest.mark.parametrize(
    ("layout_of", "marks", "metadata", "expected", "kind"),
    [
        (original, {}, {}, "auto", "epsilon"),  # the scheduler's word
        (original, V_PRED, {}, "auto", "v"),
        (original, {}, {SPEC: "v"}, "auto", "v"),
        (original, V_PRED, {}, "epsilon", "epsilon"),  # the user's word
        (original, V_PRED, {SPEC: "epsilon"}, "auto", None),  # both
        (sd2_layout, {}, {}, "auto", None),  # SD 2 comes in both
        (sd2_layout, {}, {}, "v", "v"),
        (sd2_layout, {}, {SPEC: "v_prediction"}, "auto", "v"),
    ],
)
def test_prediction_type_is_read_from_the_file_or_must_be_set(
    tmp_path: Path, layout_of: Any, marks: dict[str, Tensor], metadata: dict[str, str], expected: Any, kind: str | None
) -> None:
    pipe = sd2()
    pipe.save_pretrained(tmp_path / "config")
    save_file(layout_of(pipe) | marks, tmp_path / "a.safetensors", metadata)
    spec = Diffusers(str(tmp_path / "a.safetensors"), config=str(tmp_path / "config"), prediction=expected)
    if kind is None:
        with pytest.raises(ConfigError, match=r'Set model\.prediction = "epsilon" .* or "v"'):
            _ = spec.path
        return
    assert spec.parametrisation == kind
    assert spec.about.endswith(f"predicts {kind}")
    if layout_of is sd2_layout:
        scheduler = spec.load(Runtime()).pipe.scheduler
        assert scheduler.config.prediction_type == {"v": "v_prediction", "epsilon": "epsilon"}[kind]


def test_zero_terminal_snr_is_read_from_the_file(tmp_path: Path) -> None:
    pipe = sd2()
    pipe.save_pretrained(tmp_path / "config")
    for marks in (V_PRED, V_PRED | {"ztsnr": torch.zeros(0)}):
        save_file(original(pipe) | marks, tmp_path / "a.safetensors")
        spec = Diffusers(str(tmp_path / "a.safetensors"), config=str(tmp_path / "config"))
        assert (spec.path.grid(4)[0].alpha == 0) == ("ztsnr" in marks)
        spec.load(Runtime())


UNET = {"input_blocks.0.0.weight": (8, 4, 3, 3), "out.2.weight": (4, 8, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_unet_down.lora_down.weight": (1,)}, "an adapter, .*name its base here"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, "a ControlNet"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,), "double_blocks.0.x.quant_state.nf4": (1,)}, "quantised weights"),
        ({**UNET, "edm_vpred.sigma_max": (1,)}, "noise levels that no sampler here follows"),
        ({**UNET, "input_blocks.0.0.weight": (8, 9, 3, 3)}, "reads 9 channels, for inpainting"),
        ({**UNET, "label_emb.0.0.weight": (1,), "conditioner.embedders.0.model.x": (1,)}, "SDXL's refiner"),
        (
            {"double_blocks.0.img_attn.qkv.weight": (1,), "txt_in.individual_token_refiner.x": (1,)},
            "HunyuanImage, which diffusers does not convert, by .*; name its folder",
        ),
        ({"all_x_embedder.2-1.weight": (1,)}, "one part of a pipeline, by .*; name the pipeline's folder"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "one part of a pipeline, by .*; name the pipeline's folder"),
        ({"weight": (1,)}, "no layout that is known; there are SD 1 to 3, .* Krea 2; else"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,), "img_in_patch.weight": (1,)}, "no layout that is known"),
    ],
)
def test_files_of_other_kinds_are_refused_with_the_way_out(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=f'model.base = ".*": .*{message}') as refusal:
        read_single_file(header(tmp_path, shapes))
    assert "\n" not in str(refusal.value)


def test_networks_that_diffusers_does_not_convert_are_refused(tmp_path: Path) -> None:
    save_file(original(sana()), tmp_path / "1.5.safetensors")
    with pytest.raises(ConfigError, match=r"SANA 1\.5 .*norms of queries and keys .*; name its folder .*hub id"):
        read_single_file(str(tmp_path / "1.5.safetensors"))
    _, _, settings = write(tmp_path, "lumina2")
    save_file(original(lumina2()), tmp_path / "wide.safetensors")  # the converter's constants are other widths
    with pytest.raises(CheckpointError, match=r"Lumina .*diffusers cannot convert .*\[32, 16, 16\]") as error:
        Diffusers(str(tmp_path / "wide.safetensors"), **settings).load(Runtime())
    assert "\n" not in str(error.value)


def test_missing_or_foreign_parts_are_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file, _ = write(tmp_path, "sdxl")
    with pytest.raises(ConfigError, match=r"SDXL-type, .*Set model\.config to .* model_index\.json, scheduler/"):
        _ = Diffusers(str(file)).path
    with pytest.raises(ConfigError, match=r'model\.config = "nowhere": no such folder'):
        _ = Diffusers(str(file), config="nowhere").path
    with pytest.raises(ConfigError, match="only for a base of one file"):
        _ = Diffusers(str(folder), config=str(folder)).path
    for pickle in ("model.ckpt", "sana.pth"):
        with pytest.raises(ConfigError, match="a pickle can run code"):
            _ = Diffusers(pickle, config=str(folder)).path
    with pytest.raises(ConfigError, match=r"settings of the family sd15, and .* is SDXL-type"):
        _ = Diffusers(str(file), config=str(save("sd15", tmp_path))).path
    monkeypatch.setattr(base_model, "_load_part", None)  # no weight is read
    with pytest.raises(CheckpointError, match=r"SDXL-type, .*another architecture: \d+ tensors missing, \d+ unknown"):
        Diffusers(str(file), config=str(save("ssd-1b", tmp_path))).load(Runtime())


def test_a_network_without_its_encoders_names_what_the_folder_must_have(tmp_path: Path) -> None:
    _, file, settings = write(tmp_path, "flux-dev")
    with pytest.raises(ConfigError, match="and the weights of vae, text_encoder, text_encoder_2"):
        _ = Diffusers(str(file)).path
    weights = tmp_path / "rest/vae/diffusion_pytorch_model.safetensors"
    weights.unlink()
    with pytest.raises(CheckpointError, match="rest/vae: no weights there"):
        Diffusers(str(file), **settings).load(Runtime())


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    _, file, settings = write(tmp_path, "sd1")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        _ = Diffusers(str(file), **settings).path


@pytest.mark.parametrize("name", ["sd1", "lumina2", "sana", "qwen-image-2.1"])
def test_a_file_trains_and_exports_like_a_folder(tmp_path: Path, name: str) -> None:
    _, file, settings = write(tmp_path, name)
    spec = Diffusers(
        str(file), lora=Lora(4), height=side(name), width=side(name), tokens=TOKENS.get(name, 0), **settings
    )
    policy = spec.load(Runtime())
    for parameter in policy.parameters():
        parameter.data += 0.1
    for target in get_args(exporting.Target):
        assert exporting.export(policy, {}, 2, target, tmp_path / target) < 1e-4
    about = json.loads((tmp_path / "merged/grpaint.json").read_text())
    assert about["base"] == str(file)
    assert about["base_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux-dev"])
def test_with_a_cache_only_encoders_are_reopened_and_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, file, settings = write(tmp_path, name)
    settings |= {"height": 16, "width": 16, "tokens": 0 if name == "sd1" else 16}
    expected = latents(Diffusers(str(file), **settings).load(Runtime()))
    read, plain = [], base_model._load_part
    monkeypatch.setattr(base_model, "_load_part", lambda *given: read.append(given[2]) or plain(*given))  # type: ignore[func-returns-value]
    caching = {"embeddings": "cache", "cache": str(tmp_path / "cache")}
    policy = Diffusers(str(file), **settings, **caching).load(Runtime())  # type: ignore[arg-type]
    encoders = sorted(part for part in CASES[name][3] if part.startswith("text_encoder"))
    network = sorted(set(CASES[name][3]) - set(encoders))
    assert (sorted(read[: len(network)]), sorted(read[len(network) :])) == (network, encoders)
    assert torch.equal(latents(policy), expected)
    assert not any(part for key, part in policy.pipe.components.items() if key.startswith("text_encoder"))


@pytest.mark.parametrize(("name", "held"), [("sd1", True), ("unet-alone", False)])
def test_embeddings_are_separate_if_the_file_holds_text_encoders(tmp_path: Path, name: str, held: bool) -> None:
    _, file, settings = write(tmp_path, name)
    before = text_parts_hash(Diffusers(str(file), **settings).origin)
    tensors = load_file(file)
    tensors |= {key: t + 1 for key, t in tensors.items() if key.endswith("time_embed.0.bias")}
    save_file(tensors, file)
    assert (text_parts_hash(Diffusers(str(file), **settings).origin) != before) == held


@pytest.mark.parametrize(("precision", "library"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_file_is_held_in_few_bits_like_its_folder(tmp_path: Path, precision: Any, library: str) -> None:
    pytest.importorskip(library)
    folder, file, settings = write(tmp_path, "ssd-1b")
    few: dict[str, Any] = {"height": 16, "width": 16, "lora": Lora(4), "base_precision": precision}
    ours, theirs = (Diffusers(str(base), **few, **more) for base, more in ((file, settings), (folder, {})))
    assert torch.equal(latents(ours.load(Runtime())), latents(theirs.load(Runtime())))


def test_a_part_that_the_settings_leave_out_stays_out(tmp_path: Path) -> None:
    _, file, settings = write(tmp_path, "sd3")
    index = Path(settings["config"]) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder_3": [None, None]}))
    policy = Diffusers(str(file), height=16, width=16, tokens=16, **settings).load(Runtime())
    assert policy.pipe.text_encoder_3 is None
    assert latents(policy).isfinite().all()
