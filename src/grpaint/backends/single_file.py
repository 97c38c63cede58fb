"""Identify a checkpoint of one ``.safetensors`` file by the names and shapes in its header, without reading weights.

The layouts are those of the models' original code, as Stability AI, Black Forest Labs, A1111 and ComfyUI write them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from grpaint.core.errors import ConfigError
from grpaint.storage.files import local_path, read_header

Shapes = Mapping[str, tuple[int, ...]]
Prediction = Literal["epsilon", "v"]

PICKLES = (".ckpt", ".pth", ".pt")
NETWORK = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
LICENSE = "modelspec.license"
ITS_FOLDER = "name its folder in the diffusers layout, or the hub id of one"
FOLDER = "open it with diffusers, save_pretrained(FOLDER), and name FOLDER"
READABLE = "SD 1 to 3, SDXL, FLUX.1 and 2, Chroma, HiDream-I1, Qwen-Image, Z-Image, Lumina Image 2.0, SANA 1.0, Krea 2"
# tensor names of files that no family reads, what such a file is, and the way out
UNSUPPORTED = (
    (r"\.lora_(A|B|down|up)\.|^lora_", "an adapter", "name its base here and the adapter in model.start"),
    (r"control_model\.|input_hint_block", "a ControlNet", "name a text-to-image model"),
    (r"quant_state|weight_scale|scale_weight|scaled_fp8", "quantised weights", "take its bf16 or fp16 file"),
    (r"^edm_(mean|vpred)", "a model on noise levels that no sampler here follows", "name another model"),
    (r"^txt_in\.individual_token_refiner\.", "HunyuanImage, which diffusers does not convert", ITS_FOLDER),
    (r"noise_augmentor\.", "an unCLIP model, which needs an image", "name a text-to-image model"),
)
# tensor names of diffusers' own files of networks that are published under other names
PART_OF_A_FOLDER = r"^(down_blocks|(single_)?transformer_blocks|all_x_embedder|time_caption_embed)\."
# names of U-Nets by the transformer layers of their blocks on the way down, and in the middle block
UNET_NAMES: dict[tuple[tuple[int, ...], int], str] = {
    ((0, 0, 2, 2, 10, 10), 10): "SDXL",
    ((0, 0, 2, 2, 4, 4), 0): "SSD-1B",
    ((0, 0, 1, 1, 2, 2), 0): "Segmind Vega",
}


@dataclass(frozen=True)
class SingleFile:
    """The contents of a file: its family, the pipeline's parts by the prefix of their tensors, its prediction types.

    ``predictions``: the types that the file states; empty if it states none. ``ambiguous``: models of this kind exist
    with both types, so one has to be stated. ``zero_snr``: it states zero terminal SNR, by a tensor ``ztsnr``.
    """

    path: Path
    family: str
    about: str
    parts: Mapping[str, str]
    shapes: Shapes = field(repr=False)
    predictions: frozenset[Prediction] = frozenset()
    zero_snr: bool = False
    ambiguous: bool = False
    license: str | None = None

    def names(self, part: str) -> list[str]:
        """The names of a part's tensors in the file; a network without a prefix has those of no other part."""
        prefix = self.parts[part]
        if prefix:
            return [name for name in self.shapes if name.startswith(prefix)]
        other_prefixes = tuple(other for other in self.parts.values() if other)
        return [name for name in self.shapes if not name.startswith(other_prefixes)]

    def prediction(self, setting: Literal["auto", "epsilon", "v"]) -> Prediction | None:
        """What the network predicts: the setting, else what the file states, else None (the scheduler's settings).

        Raises:
            ConfigError: if only the setting can decide it.
        """
        if setting != "auto":
            return setting
        if len(self.predictions) == 1:
            return next(iter(self.predictions))
        if self.predictions or self.ambiguous:
            reason = "names both epsilon and v" if self.predictions else "does not say whether it predicts epsilon or v"
            raise ConfigError(
                f'model.base = "{self.path}": {self.about}, and the file {reason}. Set model.prediction = "epsilon" '
                '(Stable Diffusion 2 base, 512 pixels) or "v" (768 pixels), as the model\'s page says.'
            )
        return None


def is_single_file(base: str) -> bool:
    """Whether ``base`` names a single file, by its extension."""
    return base.endswith((".safetensors", *PICKLES))


def read_single_file(base: str) -> SingleFile:
    """Identify a single file by its header.

    Raises:
        ConfigError: if there is no such file, or no family reads it.
        CheckpointError: if it is not a whole safetensors file.
    """
    path = local_path(base)
    if base.endswith(PICKLES):
        raise ConfigError(
            f'model.base = "{base}": a pickle can run code and is not opened. Take the model\'s .safetensors file.'
        )
    if not path.is_file():
        raise ConfigError(f'model.base = "{base}": no such file.')
    shapes, metadata = read_header(path)
    header = _Header(path, shapes)
    for pattern, kind, way_out in UNSUPPORTED:
        if tensor_name := header.find(pattern):
            raise header.unsupported(f"{kind}, by {tensor_name}", way_out)
    for tensor_name, read in LAYOUTS.items():
        if tensor_name in header.network:
            try:
                layout = read(header)
            except (KeyError, IndexError):  # a relative with other inputs or outputs, such as Chroma Radiance
                break
            network = "unet" if layout.family in ("sd15", "sdxl") else "transformer"
            parts = {network: "" if header.bare else NETWORK}
            parts |= {part: prefix for part, prefix in layout.encoders.items() if header.has(prefix)}
            parts |= {"vae": prefix} if (prefix := next(filter(header.has, VAES), "")) else {}
            return SingleFile(
                path,
                layout.family,
                layout.about,
                parts,
                shapes,
                predictions=_stated_predictions(shapes, metadata),
                zero_snr="ztsnr" in shapes,
                ambiguous=layout.ambiguous,
                license=metadata.get(LICENSE),
            )
    if tensor_name := header.find(PART_OF_A_FOLDER):
        raise header.unsupported(f"one part of a pipeline, by {tensor_name}", "name the pipeline's folder")
    raise header.unsupported("no layout that is known", f"there are {READABLE}; else {FOLDER}")


class _Header:
    """A file's tensor names and shapes; ``network``: those of its network, without the prefix they may share."""

    def __init__(self, path: Path, shapes: Shapes) -> None:
        self.path, self.shapes = path, shapes
        self.bare = not self.has(NETWORK)
        self.network = {
            name.removeprefix(NETWORK): shape for name, shape in shapes.items() if self.bare or name.startswith(NETWORK)
        }

    def has(self, prefix: str) -> bool:
        """Whether any tensor's name starts with ``prefix``."""
        return any(name.startswith(prefix) for name in self.shapes)

    def find(self, pattern: str) -> str | None:
        """The first tensor whose name, without the network's prefix, has a match of ``pattern``."""
        return next((name for name in self.shapes if re.search(pattern, name.removeprefix(NETWORK))), None)

    def blocks(self, name: str) -> int:
        """How many blocks of this name the network has."""
        return len({key.split(".")[1] for key in self.network if key.startswith(f"{name}.")})

    def unsupported(self, kind: str, way_out: str) -> ConfigError:
        """The error for a file that no family reads."""
        return ConfigError(f'model.base = "{self.path}": {kind}; {way_out}.')


class _Layout(NamedTuple):
    """A model as its header describes it; ``encoders``: prefixes of the text encoders; the rest as in SingleFile."""

    family: str
    about: str
    encoders: dict[str, str]
    ambiguous: bool = False


def _stated_predictions(shapes: Shapes, metadata: Mapping[str, str]) -> frozenset[Prediction]:
    """Return the prediction types that a file states, by a tensor ``v_pred`` or Stability AI's header (or none)."""
    predictions: set[Prediction] = {"v"} if "v_pred" in shapes else set()
    entry = metadata.get("modelspec.prediction_type", "").lower().replace("_", "-")
    if entry in ("epsilon", "eps"):
        predictions.add("epsilon")
    if entry in ("v", "v-prediction"):
        predictions.add("v")
    return frozenset(predictions)


def _unet(header: _Header) -> _Layout:
    network = header.network
    channels = network["input_blocks.0.0.weight"][1]
    if channels != network["out.2.weight"][0]:
        raise header.unsupported(
            f"a U-Net that reads {channels} channels, for inpainting or editing", "take another model"
        )
    context = next((shape[1] for name, shape in network.items() if name.endswith("attn2.to_k.weight")), 0)
    if "label_emb.0.0.weight" in network:
        if context == 1280 or header.has("conditioner.embedders.0.model."):
            raise header.unsupported("SDXL's refiner", "take its base model")
        encoders = {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."}
        return _Layout("sdxl", describe_unet(network), encoders)
    is_sd2 = context == 1024 or header.has("cond_stage_model.model.")
    name = "Stable Diffusion 2.x" if is_sd2 else "Stable Diffusion 1.x"
    return _Layout("sd15", name, {"text_encoder": "cond_stage_model."}, ambiguous=is_sd2)


def describe_unet(network: Shapes) -> str:
    """The name of an SDXL-type U-Net, with the number of transformer layers in each of its blocks."""
    down, middle, up = (_depths(network, blocks) for blocks in ("input_blocks", "middle_block", "output_blocks"))
    name = UNET_NAMES.get((down, sum(middle)), "SDXL-type")
    counts = [" ".join(map(str, depths)) for depths in (down, (sum(middle),), up)]
    return f"{name}, transformer layers {counts[0]} down, {counts[1]} in the middle, {counts[2]} up"


def _depths(network: Shapes, blocks: str) -> tuple[int, ...]:
    """The number of transformer layers of each block that has a residual layer."""
    layers: dict[str, set[str]] = {}  # the numbers of the transformer layers, by the block's number
    for name in network:
        residual = re.match(rf"{blocks}\.(\d+)(?:\.0)?\.in_layers\.0\.", name)
        transformer = re.match(rf"{blocks}\.(\d+)(?:\.1)?\.transformer_blocks\.(\d+)\.", name)
        if residual or transformer:
            block_layers = layers.setdefault((residual or transformer)[1], set())  # type: ignore[index]
            block_layers |= {transformer[2]} if transformer else set()
    return tuple(len(layers[block]) for block in sorted(layers, key=int))


def _sd3(header: _Header) -> _Layout:
    has_query_norm = any(".ln_q." in name for name in header.network)
    about = f"Stable Diffusion {'3.5' if has_query_norm else '3'}, {header.blocks('joint_blocks')} blocks"
    about += ", some with a second attention for the image" if any(".attn2." in name for name in header.network) else ""
    return _Layout("sd3", about, _encoder_prefixes("clip_l", "clip_g", "t5xxl"))


def _flux(header: _Header) -> _Layout:
    inputs, outputs = header.network["img_in.weight"][1], header.network["final_layer.linear.weight"][0]
    if inputs != outputs:
        raise header.unsupported(
            f"a FLUX.1 that reads {inputs} channels, for filling or control", "take dev or schnell"
        )
    is_dev = "guidance_in.in_layer.weight" in header.network
    count = f"{header.blocks('double_blocks')} + {header.blocks('single_blocks')} blocks"
    if "distilled_guidance_layer.in_proj.weight" in header.network:
        return _Layout("chroma", f"Chroma, {count}", _encoder_prefixes("t5xxl"))
    if "double_stream_modulation_img.lin.weight" in header.network:
        return _Layout("flux2" if is_dev else "flux2-klein", f"FLUX.2 {'dev' if is_dev else 'Klein'}, {count}", {})
    guidance = "guidance embedded" if is_dev else "no guidance embedded"
    about = f"FLUX.1 {'dev' if is_dev else 'schnell'}, {count}, {guidance}"
    return _Layout("flux", about, _encoder_prefixes("clip_l", "t5xxl"))


def _qwen_image(header: _Header) -> _Layout:
    return _Layout("qwen-image", f"Qwen-Image, {header.blocks('transformer_blocks')} blocks", {})


def _qwen_image21(header: _Header) -> _Layout:
    return _Layout("qwen-image-2.1", f"Qwen-Image 2.1, {header.blocks('transformer_blocks')} blocks", {})


def _next_dit(header: _Header) -> _Layout:
    """Z-Image or Lumina Image 2.0: their layers have the same names."""
    count = f"{header.blocks('layers')} blocks"
    if "x_pad_token" in header.network:
        return _Layout("z-image", f"Z-Image, {count}", {})
    return _Layout("lumina2", f"Lumina Image 2.0, {count}", {})


def _sana(header: _Header) -> _Layout:
    if "blocks.0.attn.q_norm.weight" in header.network:
        about = "SANA 1.5 or Sprint, whose norms of queries and keys diffusers does not convert"
        raise header.unsupported(about, ITS_FOLDER)
    return _Layout("sana", f"SANA, {header.blocks('blocks')} blocks", {})


def _krea2(header: _Header) -> _Layout:
    return _Layout("krea2", f"Krea 2, {header.blocks('blocks')} blocks", {})


def _hidream(header: _Header) -> _Layout:
    count = f"{header.blocks('double_stream_blocks')} + {header.blocks('single_stream_blocks')} blocks"
    return _Layout("hidream", f"HiDream-I1, {count}", {})


def _encoder_prefixes(*names: str) -> dict[str, str]:
    parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return {part: f"text_encoders.{name}." for part, name in zip(parts, names, strict=False)}


LAYOUTS: dict[str, Callable[[_Header], _Layout]] = {  # by a tensor that every file of the layout has
    "input_blocks.0.0.weight": _unet,
    "joint_blocks.0.x_block.attn.qkv.weight": _sd3,
    "double_blocks.0.img_attn.qkv.weight": _flux,
    "transformer_blocks.0.img_mod.1.weight": _qwen_image,  # diffusers' names are those of its first code
    "txt_in.text_norm.weight": _qwen_image21,  # diffusers' names, but for the gates that ComfyUI fuses
    "layers.0.attention.qkv.weight": _next_dit,
    "blocks.0.mlp.inverted_conv.conv.weight": _sana,
    "tproj.1.weight": _krea2,
    "double_stream_blocks.0.block.adaLN_modulation.1.bias": _hidream,  # diffusers' names are those of its first code
}
