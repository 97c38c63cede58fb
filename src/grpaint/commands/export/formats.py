"""Write an adapter or a pipeline for other programs, load it again, and compare what it draws."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from grpaint.backends.adapter_files import adapter_file, is_adapter
from grpaint.backends.adapters import kohya, merged_state, without_adapters
from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.backends.frozen import frozen_facts
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.core.text import one_line
from grpaint.storage.atomic import atomic_folder
from grpaint.storage.files import digest, read_weights, write_weights

Target = Literal["diffusers", "comfyui", "merged"]
TEXTS = ("a red circle", "")
ADAPTER = "pytorch_lora_weights.safetensors"
UNNAMED = ("add_embedding.", "encoder_hid_proj.")  # layers of U-Nets for which diffusers reads no name of kohya's


@dataclass(frozen=True)
class Match:
    """The layers of an adapter file that a network has (``matched``), and those that it lacks."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]


def _check(policy: Any, target: Target, out: Path) -> None:
    """Raise ConfigError if this model cannot be exported for ``target``, or ``out`` exists."""
    if not isinstance(policy, DiffusersPolicy):
        raise ConfigError(
            "export: the built-in model is its own file, checkpoints/NUMBER/model.safetensors of the run."
        )
    if policy.spec.base_precision != "full":
        raise ConfigError(
            f"export: the base is held in {policy.spec.base_precision}, and an export is compared on the unquantised "
            "base; add --set model.base_precision=full."
        )
    if target != "merged" and not policy.spec.lora:
        raise ConfigError(
            f"export --for {target}: the run trained the whole network, not an adapter; use --for merged."
        )
    if target == "comfyui" and not policy.family.LOADS_LORA:
        raise ConfigError(
            f"export --for comfyui: diffusers knows no other names for the layers of a {policy.family.PIPELINE}; use "
            "--for diffusers or merged."
        )
    unnamed = sorted({key.partition(".lora_")[0] for key in policy.weights.trainable if key.startswith(UNNAMED)})
    if target == "comfyui" and policy.spec.lora and unnamed:
        raise ConfigError(
            f"export --for comfyui: diffusers reads no name for {', '.join(unnamed)}; use --for diffusers or merged."
        )
    if target != "merged" and policy.spec.adapter:
        raise ConfigError(
            f"export --for {target}: this adapter sits on the whole network {policy.spec.start}; use --for merged."
        )
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; take another name, or remove it.")


def export(policy: Any, recipe: Mapping[str, Any], steps: int, target: Target, out: Path) -> float:
    """Write the model into the folder ``out``, load it again, and return the relative difference |a - b| / |b|.

    ``a`` and ``b`` are the latents of the reloaded and the original model for two captions after ``steps`` steps; for
    a merged pipeline in half precision they are weights. ``recipe``: the settings to store in the exported file.

    Raises:
        ConfigError: the model cannot be exported for ``target``, or ``out`` exists.
        CheckpointError: the difference exceeds the limit; ``out`` is removed.
    """
    _check(policy, target, out)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(atomic_folder(out))
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); name another place.") from error
        start = policy.noise((0, 0, "export"), range(len(TEXTS)))
        expected = policy.stock(TEXTS, start, steps)
        with without_adapters(getattr(policy.pipe, policy.family.NETWORK)):  # without one the change is 0
            change = _difference(expected, policy.stock(TEXTS, start, steps))
        limit = min(1e-3 if policy.runtime.precision == "fp32" else 0.1, max(0.1 * change, 1e-5))
        _write(policy, recipe, target, partial)
        with _reopened(policy, target, partial) as reloaded:
            deviation = _difference(reloaded.stock(TEXTS, start, steps), expected)
        if target == "merged" and policy.runtime.precision != "fp32":  # latents are rounded, the file is not
            deviation = _weight_difference(policy, partial)
        if not deviation <= limit:
            raise CheckpointError(
                f"{out}: reloaded, it draws other images (latents differ by {deviation:.1e}, training moved them by "
                f"{change:.1e}); not kept."
            )
    return deviation


def _weight_difference(policy: DiffusersPolicy, folder: Path) -> float:
    """Return the largest relative difference of a merged pipeline's weights from those that were merged."""
    name = policy.family.NETWORK
    expected = merged_state(getattr(policy.pipe, name))
    written = getattr(policy.open_base(folder, exact=True), name).state_dict()
    return max(_difference(written[key].to(t.device), t.float()) for key, t in expected.items() if t.any())


def _difference(tensor: Tensor, expected: Tensor) -> float:
    return ((tensor - expected).double().norm() / expected.double().norm()).item()


def _write(policy: DiffusersPolicy, recipe: Mapping[str, Any], target: Target, folder: Path) -> None:
    about = description(policy, recipe)
    if target == "merged":
        network = getattr(policy.pipe, policy.family.NETWORK)
        pipe = policy.open_base(exact=True)  # half precision would round a small change away
        getattr(pipe, policy.family.NETWORK).load_state_dict(merged_state(network))
        pipe.save_pretrained(folder)
        (folder / "grpaint.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return
    tensors, header = policy.export("current")
    if target == "comfyui":
        tensors = kohya(tensors, policy.family.NETWORK)
    write_weights(folder / ADAPTER, tensors, header | {"grpaint": json.dumps(about)})


@contextmanager
def _reopened(policy: DiffusersPolicy, target: Target, folder: Path) -> Iterator[DiffusersPolicy]:
    """Yield a policy on what was written, loaded by diffusers; an adapter is put on the base that is open."""
    if target == "merged":
        pipe = policy.open_base(folder)
        yield DiffusersPolicy(policy.spec, pipe.to(policy.runtime.device), policy.weights, policy.runtime)
        return
    network = getattr(policy.pipe, policy.family.NETWORK)
    with without_adapters(network):
        if policy.family.LOADS_LORA:
            policy.pipe.load_lora_weights(folder, weight_name=ADAPTER)
        else:
            network.load_lora_adapter(folder, prefix=policy.family.NETWORK, weight_name=ADAPTER)
        network.to(policy.runtime.device)
        try:
            yield policy
        finally:
            if policy.family.LOADS_LORA:
                policy.pipe.unload_lora_weights()
            else:
                network.unload_lora()


def description(policy: Any, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an exported file records: the base with its hash and license, the family, and the recipe.

    A merged pipeline also records the frozen adapters in it.
    """
    frozen = frozen_facts(policy.spec.frozen, policy.weights.frozen)
    return ({"frozen": frozen} if frozen else {}) | {
        "base": policy.spec.base,
        "base_sha256": base_hash(policy),
        "family": policy.name,
        "license": policy.spec.origin.license,
        "recipe": recipe,
    }


def base_hash(policy: DiffusersPolicy) -> str:
    """Return the SHA-256 of the base's single file, or over the weight files of the trained network."""
    if policy.spec.origin.single:
        return digest(policy.spec.origin.single.path)
    sha256 = hashlib.sha256()
    for file in sorted((policy.spec.local_folder / policy.family.NETWORK).glob("*.safetensors")):
        sha256.update(bytes.fromhex(digest(file)))
    return sha256.hexdigest()


def match(policy: Any, path: Path) -> Match:
    """Return which layers of an adapter's file or folder this model's network has; diffusers converts its names.

    Raises:
        ConfigError: the model takes no adapters.
        CheckpointError: the file cannot be read, holds no LoRA, or diffusers does not know its naming scheme.
    """
    if not isinstance(policy, DiffusersPolicy):
        raise ConfigError("export --check: the built-in model takes no adapter files.")
    file = adapter_file(path)
    if not is_adapter(file):
        raise CheckpointError(f"{file}: no LoRA, by the names of its tensors.")
    tensors, _ = read_weights(file)
    network = getattr(policy.pipe, policy.family.NETWORK)
    try:
        converted: Any = tensors
        if policy.family.LOADS_LORA:
            converted = type(policy.pipe).lora_state_dict(tensors, unet_config=getattr(network, "config", None))
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: not an adapter that diffusers reads: {one_line(str(error), 300)}") from error
    names = {name.replace(".base_layer", "") for name, _ in network.named_modules()}
    prefix = policy.family.NETWORK + "."
    layers = {_layer(key) for key in (converted[0] if isinstance(converted, tuple) else converted)}
    matched = {layer for layer in layers if layer.removeprefix(prefix) in names and layer.startswith(prefix)}
    return Match(tuple(sorted(matched)), tuple(sorted(layers - matched)))


def _layer(key: str) -> str:
    """Return the layer of an adapter's tensor; the names that diffusers used before peft are understood."""
    older = re.sub(r"\.processor\.(to_[a-z]+)_lora\.", r".\1.lora.", key).replace(".to_out.lora.", ".to_out.0.lora.")
    return re.split(r"\.lora[._]|\.alpha|\.dora", older)[0]
