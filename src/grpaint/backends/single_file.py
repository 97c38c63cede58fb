"""Checkpoints of one ``.safetensors`` file, told by the names and shapes in its header: no weight is read here.

The layouts are those of the models' first code, as Stability AI, Black Forest Labs, A1111 and ComfyUI write them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grpaint.core.errors import ConfigError
from grpaint.storage.files import read_header

Shapes = Mapping[str, tuple[int, ...]]
Predicts = Literal["epsilon", "v"]

NETWORK = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
# what marks a file that is something else, what that is, and the way out
LICENSE = "modelspec.license"
FOLDER = "open it with diffusers, save_pretrained(FOLDER), and name FOLDER"
OTHERS = (
    (r"\.lora_(A|B|down|up)\.|^lora_", "an adapter", "name its base here and the adapter in model.start"),
    (r"control_model\.|input_hint_block", "a ControlNet", "name a text-to-image model"),
    (r"quant_state|weight_scale|scale_weight|scaled_fp8", "quantised weights", "take its bf16 or fp16 file"),
    (r"^edm_(mean|vpred)|^ztsnr$", "a model on noise levels that no sampler here follows", "name another model"),
    (r"noise_augmentor\.", "an unCLIP model, which needs an image", "name a text-to-image model"),
    (r"distilled_guidance_layer\.", "Chroma", "no family reads it; model.family can name one of your own"),
    (r"double_stream_modulation", "FLUX.2", "no family reads it; model.family can name one of your own"),
    (r"cap_embedder\.", "Z-Image or Lumina", f"{FOLDER}, or a hub id"),
    (r"transformer_blocks\.0\.img_mod\.", "Qwen-Image", f"{FOLDER}, or a hub id"),
    (r"^(down_blocks|(single_)?transformer_blocks)\.", "one part of a pipeline", "name the pipeline's folder"),
)
# transformer layers of the U-Net's blocks on the way down, and in its middle
LAYOUTS: dict[tuple[tuple[int, ...], int], str] = {
    ((0, 0, 2, 2, 10, 10), 10): "SDXL",
    ((0, 0, 2, 2, 4, 4), 0): "SSD-1B",
    ((0, 0, 1, 1, 2, 2), 0): "Segmind Vega",
}


@dataclass(frozen=True)
class SingleFile:
    """What a file holds: its family, the pipeline's parts with where their names begin, and its prediction type.

    ``says`` is empty where the file does not say what it predicts; ``asks`` where its kind comes in both types.
    """

    path: Path
    family: str
    about: str
    parts: Mapping[str, str]
    shapes: Shapes = field(repr=False)
    says: frozenset[Predicts] = frozenset()
    asks: bool = False
    license: str | None = None

    def names(self, part: str) -> list[str]:
        """The names of a part's tensors in the file; of a bare network's, those that no other part has."""
        begin = self.parts[part]
        if begin:
            return [name for name in self.shapes if name.startswith(begin)]
        others = tuple(other for other in self.parts.values() if other)
        return [name for name in self.shapes if not name.startswith(others)]

    def predicts(self, wanted: Literal["auto", "epsilon", "v"]) -> Predicts | None:
        """What the network predicts: what the settings want, else what the file says; None where neither does.

        Raises:
            ConfigError: where the settings must say it.
        """
        if wanted != "auto":
            return wanted
        if len(self.says) == 1:
            return next(iter(self.says))
        if self.says or self.asks:
            reason = "says both epsilon and v" if self.says else "does not say whether it predicts epsilon or v"
            raise ConfigError(
                f'model.base = "{self.path}": {self.about}, and the file {reason}. Set model.prediction = "epsilon" '
                '(Stable Diffusion 2 base, 512 pixels) or "v" (768 pixels), as the model\'s page says.'
            )
        return None


def is_single_file(base: str) -> bool:
    """Whether a single file is named, by its ending."""
    return base.endswith((".safetensors", ".ckpt"))


def recognised(base: str) -> SingleFile:
    """What a single file holds, by its header.

    Raises:
        ConfigError: where there is no such file, or no family reads it.
        CheckpointError: where it is no whole safetensors file.
    """
    path = Path(base).expanduser()
    if base.endswith(".ckpt"):
        raise ConfigError(
            f'model.base = "{base}": a pickle can run code and is not opened. Take the model\'s .safetensors file.'
        )
    if not path.is_file():
        raise ConfigError(f'model.base = "{base}": no such file.')
    shapes, metadata = read_header(path)
    held = _Held(path, shapes)
    for pattern, what, way in OTHERS:
        found = next((name for name in shapes if re.search(pattern, name.removeprefix(NETWORK))), None)
        if found:
            raise held.refused(f"{what}, by {found}", way)
    for mark, read in READERS.items():
        if mark in held.network:
            family, about, encoders, asks = read(held)
            main = {"unet" if family in ("sd15", "sdxl") else "transformer": "" if held.bare else NETWORK}
            parts = main | {part: begin for part, begin in encoders.items() if held.has(begin)}
            parts |= {"vae": begin} if (begin := next(filter(held.has, VAES), "")) else {}
            return SingleFile(path, family, about, parts, shapes, _says(shapes, metadata), asks, metadata.get(LICENSE))
    raise held.refused("no layout that is known", f"there are SD 1 and 2, SDXL, SD 3 and FLUX.1; else {FOLDER}")


class _Held:
    """A file's names and shapes, and those of its network without the beginning that they may share."""

    def __init__(self, path: Path, shapes: Shapes) -> None:
        self.path, self.shapes = path, shapes
        self.bare = not self.has(NETWORK)
        self.network = {
            name.removeprefix(NETWORK): shape for name, shape in shapes.items() if self.bare or name.startswith(NETWORK)
        }

    def has(self, begin: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(begin) for name in self.shapes)

    def blocks(self, name: str) -> int:
        """How many blocks of this name the network has."""
        return len({key.split(".")[1] for key in self.network if key.startswith(f"{name}.")})

    def refused(self, what: str, way: str) -> ConfigError:
        """What is said of a file that no family reads."""
        return ConfigError(f'model.base = "{self.path}": {what}; {way}.')


def _says(shapes: Shapes, metadata: Mapping[str, str]) -> frozenset[Predicts]:
    """What the file says that it predicts: a tensor named ``v_pred``, or the header of Stability AI's model spec."""
    said: set[Predicts] = {"v"} if "v_pred" in shapes else set()
    written = metadata.get("modelspec.prediction_type", "").lower().replace("_", "-")
    if written in ("epsilon", "eps"):
        said.add("epsilon")
    if written in ("v", "v-prediction"):
        said.add("v")
    return frozenset(said)


Read = tuple[str, str, dict[str, str], bool]  # family, about, beginnings of the encoders' names, asks


def _unet(held: _Held) -> Read:
    network = held.network
    channels = network["input_blocks.0.0.weight"][1]
    if channels != network["out.2.weight"][0]:
        raise held.refused(f"a U-Net that reads {channels} channels, for inpainting or editing", "take another model")
    context = next((shape[1] for name, shape in network.items() if name.endswith("attn2.to_k.weight")), 0)
    if "label_emb.0.0.weight" in network:
        if context == 1280 or held.has("conditioner.embedders.0.model."):
            raise held.refused("SDXL's refiner", "take its base model")
        encoders = {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."}
        return "sdxl", layout(network), encoders, False
    second = context == 1024 or held.has("cond_stage_model.model.")
    name = "Stable Diffusion 2.x" if second else "Stable Diffusion 1.x"
    return "sd15", name, {"text_encoder": "cond_stage_model."}, second


def layout(network: Shapes) -> str:
    """An SDXL-type U-Net by the transformer layers that its blocks have."""
    down, middle, up = (_depths(network, blocks) for blocks in ("input_blocks", "middle_block", "output_blocks"))
    name = LAYOUTS.get((down, sum(middle)), "SDXL-type")
    words = [" ".join(map(str, depths)) for depths in (down, (sum(middle),), up)]
    return f"{name}, transformer layers {words[0]} down, {words[1]} in the middle, {words[2]} up"


def _depths(network: Shapes, blocks: str) -> tuple[int, ...]:
    """Transformer layers of each block that has a residual layer."""
    deep: dict[str, set[str]] = {}
    for name in network:
        residual = re.match(rf"{blocks}\.(\d+)(?:\.0)?\.in_layers\.0\.", name)
        layer = re.match(rf"{blocks}\.(\d+)(?:\.1)?\.transformer_blocks\.(\d+)\.", name)
        if residual or layer:
            found = deep.setdefault((residual or layer)[1], set())  # type: ignore[index]
            found |= {layer[2]} if layer else set()
    return tuple(len(deep[number]) for number in sorted(deep, key=int))


def _sd3(held: _Held) -> Read:
    newer = any(".ln_q." in name for name in held.network)
    about = f"Stable Diffusion {'3.5' if newer else '3'}, {held.blocks('joint_blocks')} blocks"
    about += ", some with an attention to the image alone" if any(".attn2." in name for name in held.network) else ""
    return "sd3", about, _encoders("clip_l", "clip_g", "t5xxl"), False


def _flux(held: _Held) -> Read:
    read, made = held.network["img_in.weight"][1], held.network["final_layer.linear.weight"][0]
    if read != made:
        raise held.refused(f"a FLUX.1 that reads {read} channels, for filling or control", "take dev or schnell")
    dev = "guidance_in.in_layer.weight" in held.network
    count = f"{held.blocks('double_blocks')} + {held.blocks('single_blocks')} blocks"
    told = "guidance embedded" if dev else "no guidance embedded"
    return "flux", f"FLUX.1 {'dev' if dev else 'schnell'}, {count}, {told}", _encoders("clip_l", "t5xxl"), False


def _encoders(*names: str) -> dict[str, str]:
    parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return {part: f"text_encoders.{name}." for part, name in zip(parts, names, strict=False)}


READERS: dict[str, Callable[[_Held], Read]] = {  # by a tensor that every file of the layout has
    "input_blocks.0.0.weight": _unet,
    "joint_blocks.0.x_block.attn.qkv.weight": _sd3,
    "double_blocks.0.img_attn.qkv.weight": _flux,
}
