"""Adapter files of runs and of other programs, read into the adapter that is trained."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from grpaint.backends.adapters import Lora
from grpaint.backends.families import Family, PipelineFolder
from grpaint.core.errors import CheckpointError
from grpaint.core.text import one_line
from grpaint.storage.files import check_tensors, find_weights, read_header, read_weights
from grpaint.storage.reading import parse_object, read_object

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
MERGE = "Merge it into its base with the program that trained it, and name the merged model in model.base."
# what tensor names say of adapters that are not plain LoRA
OTHER_KINDS = {
    "LoKr": r"\.lokr_",
    "LoHa": r"\.hada_",
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "OFT": r"\.oft_",
    "BOFT": r"\.boft_",
    "IA3": r"\.ia3_|\.on_input$",
    "VeRA": r"vera_lambda",
    "GLoRA": r"^(lora|lycoris)_.*\.[ab][12]\.weight$",
    "whole differences of weights": r"\.diff(_b)?$|\.w_norm$|\.b_norm$",
    "textual inversion": r"^emb_params$|^clip_[lg]$",
    "LoCon with three matrices": r"\.lora_mid\.|\.lora\.mid\.",
    "LoRA with biases": r"\.lora_(B|up)\.bias",
}
EXAMPLES = 3  # names in a message
LORA = r"\.lora_(A|B|up|down)\b|[._]lora\.(up|down)\."
# what peft's settings say of them
OTHER_SETTINGS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases",
    "modules_to_save": "whole layers beside LoRA",
    "layer_replication": "replicated layers",
    "fan_in_fan_out": "transposed layers",
}


class Factors(NamedTuple):
    """A layer's low-rank change of its weight: ``scale * up @ down``."""

    down: Tensor  # [rank, inputs]
    up: Tensor  # [outputs, rank]
    scale: float


def adapter_file(path: Path) -> Path:
    """The weight file at a path: the path itself, or a checkpoint's, diffusers' or peft's file in a folder.

    Raises:
        CheckpointError: if there is only a torch file of peft or diffusers.
    """
    if path.is_file() and path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt"):
        raise CheckpointError(f"{path}: a torch file. Load it where it was trained, and save it as safetensors.")
    if not path.is_dir():
        return path
    for name in (DIFFUSERS_FILE, PEFT_FILE):
        if (path / name).is_file():
            return path / name
        if (torch_file := (path / name).with_suffix(".bin")).is_file():
            return adapter_file(torch_file)
    return find_weights(path)


def is_adapter(path: Path) -> bool:
    """Whether a weight file holds an adapter, by the names of its tensors.

    Raises:
        CheckpointError: if it is an adapter of a kind other than LoRA.
    """
    file = adapter_file(path)
    names, _ = read_header(file)
    for kind, pattern in OTHER_KINDS.items():
        if others := [name for name in names if re.search(pattern, name)]:
            examples = one_line(", ".join(others[:EXAMPLES]), 200) + (", .." if len(others) > EXAMPLES else "")
            raise CheckpointError(
                f"{file}: an adapter of the kind {kind} ({len(others)} tensors: {examples}); only plain LoRA is "
                f"supported. {MERGE}"
            )
    return any(re.search(LORA, name) for name in names)


def tensor_name(family: Family, name: str) -> str:
    """The name of an adapter's tensor in a file, as diffusers expects it."""
    return f"{family.NETWORK}.{name.replace('.default.', '.')}"


def load_adapter(
    path: Path, lora: Lora, trainable: Mapping[str, nn.Parameter], named_family: tuple[str, Family], pipe: Any
) -> None:
    """Load an adapter's weights, with the effect that they have in the program that wrote them.

    A file of a run must have the same layers and rank. A file of another program may have fewer layers and lower ranks:
    the rest begins without effect.

    Raises:
        CheckpointError: if it is of another family, has layers that ``trainable`` lacks, or a higher rank.
    """
    (name, family), file = named_family, adapter_file(path)
    stored, metadata = read_weights(file)
    if "family" in metadata and not any(".lora_down." in key for key in stored):  # not exported for ComfyUI
        parameters = {tensor_name(family, key): p for key, p in trainable.items()}
        check_tensors(file, stored, parameters, metadata, {"family": name})
    factors = _factors(file, stored, metadata, family, pipe)
    layers = {key.partition(".lora_A.")[0] for key in trainable if ".lora_A." in key}
    _check_layers(file, factors, layers, getattr(pipe, family.NETWORK), family)
    for layer in layers & factors.keys():
        down, up = (trainable[f"{layer}.lora_{matrix}.default.weight"].data for matrix in "AB")
        rank = len(factors[layer].down)
        if rank > lora.rank:
            raise CheckpointError(
                f"{file}: rank {rank} at {layer}, and model.lora.rank = {lora.rank}. Set it to {rank}."
            )
        if down[:rank].shape != factors[layer].down.shape or up[:, :rank].shape != factors[layer].up.shape:
            raise CheckpointError(f"{file}: weights of another architecture: another shape at {layer}.")
        set_factors(down, up, factors[layer], lora.rank / lora.alpha)


def set_factors(down: Tensor, up: Tensor, factors: Factors, strength: float) -> None:
    """Write a layer's factors, multiplied by ``strength``, into matrices of the same rank or a higher one, in place."""
    rank = len(factors.down)
    down[:rank] = factors.down.float()
    up.zero_()
    up[:, :rank] = factors.up.float() * (factors.scale * strength)


def read_factors(path: Path, named_family: tuple[str, Family], pipe: Any) -> dict[str, Factors]:
    """Read an adapter's factors by the names of the network's layers.

    Raises:
        CheckpointError: if it is of another family, adapts text encoders, or its names are not understood.
    """
    (name, family), file = named_family, adapter_file(path)
    stored, metadata = read_weights(file)
    if metadata.get("family", name) != name:
        raise CheckpointError(f'{file}: an adapter for "{metadata["family"]}", and the base is of the family "{name}".')
    return _factors(file, stored, metadata, family, pipe)


def _check_layers(
    file: Path, factors: Mapping[str, Factors], layers: set[str], network: nn.Module, family: Family
) -> None:
    """Raise unless all layers of a file that have an effect are trained."""
    linear = {name for name, module in network.named_modules() if name in layers or isinstance(module, nn.Linear)}
    unknown = sorted(layer for layer in factors.keys() - linear)
    if unknown or not factors:
        example = f"; for example {unknown[0]} is no linear layer of this network" if unknown else ""
        raise CheckpointError(f"{file}: weights of another architecture: {len(unknown)} layers unknown{example}.")
    idle = family.idle(network)
    left_out = sorted(layer for layer in factors.keys() - layers if not layer.startswith(idle))
    if left_out:
        endings = sorted({re.sub(r".*?([^.\d][^.]*(\.\d+)?)$", r"\1", layer) for layer in factors})
        raise CheckpointError(
            f"{file}: {len(left_out)} of its layers are not among model.lora.targets, for example {left_out[0]}. Set "
            f"model.lora.targets = {endings}."
        )


def _factors(
    file: Path, stored: Mapping[str, Tensor], metadata: Mapping[str, str], family: Family, pipe: Any
) -> dict[str, Factors]:
    """The factors of a file's layers, by the names of the network's layers."""
    settings = _settings(file, metadata, family)
    with PipelineFolder(file).opening("an adapter"):
        tensors, alphas = _as_diffusers(file, stored, family, pipe)
        foreign = sorted(name for name in tensors if name.startswith("text_encoder"))
        if foreign:
            raise CheckpointError(
                f"{file}: it also adapts text encoders ({foreign[0]}), which stay as they are here. {MERGE}"
            )
        factors = {}
        for name, down in tensors.items():
            layer, _, is_down = name.removeprefix(f"{family.NETWORK}.").partition(".lora_A.")
            if is_down:
                up = tensors[name.replace(".lora_A.", ".lora_B.")]
                alpha = alphas.get(f"{family.NETWORK}.{layer}")
                scale = _scale(settings, layer, len(down)) if alpha is None else float(alpha) / len(down)
                factors[layer] = _checked(Factors(down, up, scale), f"{file}: {layer}")
    return factors


def _checked(factors: Factors, location: str) -> Factors:
    floating = factors.down.is_floating_point() and factors.up.is_floating_point()
    if not (floating and math.isfinite(factors.down.float().sum() + factors.up.float().sum() + factors.scale)):
        raise CheckpointError(f"{location}: its factors are no finite numbers. Save the adapter again, in fp32.")
    return factors


def _as_diffusers(
    file: Path, stored: Mapping[str, Tensor], family: Family, pipe: Any
) -> tuple[dict[str, Tensor], Mapping[str, Tensor | float]]:
    """Tensors under diffusers' present names, and the alphas by layer, if they are tensors of the file.

    Raises:
        CheckpointError: the names are others, and diffusers converts none for this pipeline.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    named = {}
    for name, tensor in stored.items():
        of_network = re.sub(r"^base_model\.model\.", f"{family.NETWORK}.", name)
        named[re.sub(r"\.lora_([AB])\.default\.", r".lora_\1.", of_network)] = tensor
    own = re.compile(rf"{family.NETWORK}\..+\.lora_[AB]\.weight")
    if all(own.fullmatch(name) for name in named):
        return named, {}
    if not family.LOADS_LORA:
        other = next(name for name in named if not own.fullmatch(name))
        raise CheckpointError(
            f"{file}: {other}: diffusers converts no other program's names for a {family.PIPELINE}. Save it under the "
            f"names of diffusers or peft, {family.NETWORK}.LAYER.lora_A.weight."
        )
    network = getattr(pipe, family.NETWORK)
    converted = pipe.lora_state_dict(named, unet_config=network.config, return_alphas=True)
    tensors, alphas = converted[:2] if isinstance(converted, tuple) else (converted, None)
    alphas = {name.removesuffix(".alpha"): alpha for name, alpha in (alphas or {}).items()}
    if not all(".lora_A." in name or ".lora_B." in name for name in tensors):
        tensors, alphas = map(convert_unet_state_dict_to_peft, (tensors, alphas))
    return tensors, {name.partition(".lora_A.")[0]: alpha for name, alpha in alphas.items()}


def _settings(file: Path, metadata: Mapping[str, str], family: Family) -> dict[str, Any]:
    """The settings of peft beside the file, or those that diffusers writes into its header; checked.

    Raises:
        ConfigError, CheckpointError: if they are damaged, or of an adapter of another kind.
    """
    config = file.with_name(PEFT_CONFIG)
    if file.name == PEFT_FILE and not (config.is_file() or "lora_adapter_metadata" in metadata):
        raise CheckpointError(f"{file}: no {PEFT_CONFIG} beside it, which has its strength. Copy the whole folder.")
    if file.name == PEFT_FILE and config.is_file():
        settings, origin = read_object(config), str(config)
    else:
        table, origin = parse_object(metadata.get("lora_adapter_metadata", "{}"), str(file)), f"{file}: its header"
        settings = {key.removeprefix(f"{family.NETWORK}."): value for key, value in table.items()}
    kinds = [kind for key, kind in OTHER_SETTINGS.items() if settings.get(key)]
    if settings.get("peft_type", "LORA") != "LORA":
        kinds.append(f"{settings['peft_type']!r:.40}")
    if kinds:
        raise CheckpointError(f"{origin}: an adapter of the kind {kinds[0]}; only plain LoRA is supported. {MERGE}")
    for key in ("lora_alpha", "r"):
        if not _is_number(settings.get(key, 1)):
            raise CheckpointError(f"{origin} has {key} = {settings[key]!r:.40}, not a number above 0.")
    for key in ("alpha_pattern", "rank_pattern"):
        table = settings.get(key) or {}
        if not isinstance(table, dict) or not all(map(_is_number, table.values())):
            raise CheckpointError(f"{origin} has {key} = {table!r:.40}, not a table of numbers above 0.")
    return settings


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def _scale(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Alpha / rank of a layer, or alpha / sqrt(rank) for rank-stabilised LoRA; 1 without settings."""
    from peft.utils.other import get_pattern_key

    if "lora_alpha" not in settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    alpha = cast("float", patterns.get(get_pattern_key(patterns, layer), settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
