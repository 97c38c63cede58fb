"""``grpaint export``: an adapter or a pipeline for other programs, reloaded and compared before it counts as done."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from grpaint.backends.adapters import kohya, merged_state, without_adapters
from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.storage.atomic import atomic_folder
from grpaint.storage.files import digest, read_weights, write_weights

Target = Literal["diffusers", "comfyui", "merged"]
TEXTS = ("a red circle", "")
ADAPTER = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Match:
    """The layers of an adapter file that a network has, and those that it does not."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]


def _refuse(policy: Any, target: Target, out: Path) -> None:
    if not isinstance(policy, DiffusersPolicy):
        raise ConfigError(
            "export: the built-in model is its own file, checkpoints/NUMBER/model.safetensors of the run."
        )
    if policy.spec.base_precision != "full":
        raise ConfigError(
            f"export: the base is held in {policy.spec.base_precision}, and what is written is compared on the whole "
            "one; add --set model.base_precision=full."
        )
    if target != "merged" and not policy.spec.lora:
        raise ConfigError(
            f"export --for {target}: the run trained the whole network, not an adapter; use --for merged."
        )
    if target != "merged" and policy.spec.adapter:
        raise ConfigError(
            f"export --for {target}: this adapter sits on the whole network {policy.spec.start}; use --for merged."
        )
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; take another name, or remove it.")


def export(policy: Any, recipe: Mapping[str, Any], steps: int, target: Target, out: Path) -> float:
    """Write ``out``, open it as its reader would, and compare what it draws in ``steps``; the relative difference.

    ``recipe`` is the table that the file carries.

    Raises:
        ConfigError: where this model has no such form, or ``out`` is taken.
        CheckpointError: where what was written draws something else; nothing stays of it.
    """
    _refuse(policy, target, out)
    with ExitStack() as stack:
        try:
            aside = stack.enter_context(atomic_folder(out))
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); name another place.") from error
        start = policy.noise((0, 0, "export"), range(len(TEXTS)))
        wanted = policy.stock(TEXTS, start, steps)
        with without_adapters(getattr(policy.pipe, policy.family.NETWORK)):  # a whole network has none: moved is 0
            moved = _difference(wanted, policy.stock(TEXTS, start, steps))
        limit = min(1e-3 if policy.runtime.precision == "fp32" else 0.1, max(0.1 * moved, 1e-5))
        _write(policy, recipe, target, aside)
        with _reopened(policy, target, aside) as again:
            off = _difference(again.stock(TEXTS, start, steps), wanted)
        if target == "merged" and policy.runtime.precision != "fp32":  # its images round what its file keeps
            off = _changed(policy, aside)
        if not off <= limit:
            raise CheckpointError(
                f"{out}: reloaded, it draws other images (latents differ by {off:.1e}, training moved them by "
                f"{moved:.1e}); not kept."
            )
    return off


def _changed(policy: DiffusersPolicy, folder: Path) -> float:
    """How far the weights of a merged pipeline are from those that were merged."""
    name = policy.family.NETWORK
    wanted = merged_state(getattr(policy.pipe, name))
    kept = getattr(policy.open_base(folder, exact=True), name).state_dict()
    return max(_difference(kept[key].to(t.device), t.float()) for key, t in wanted.items() if t.any())


def _difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).double().norm() / other.double().norm()).item()


def _write(policy: DiffusersPolicy, recipe: Mapping[str, Any], target: Target, folder: Path) -> None:
    about = description(policy, recipe)
    if target == "merged":
        network = getattr(policy.pipe, policy.family.NETWORK)
        whole = policy.open_base(exact=True)  # less would round a small change away
        getattr(whole, policy.family.NETWORK).load_state_dict(merged_state(network))
        whole.save_pretrained(folder)
        (folder / "grpaint.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return
    tensors, header = policy.export("current")
    if target == "comfyui":
        tensors = kohya(tensors, policy.family.NETWORK)
    write_weights(folder / ADAPTER, tensors, header | {"grpaint": json.dumps(about)})


@contextmanager
def _reopened(policy: DiffusersPolicy, target: Target, folder: Path) -> Iterator[DiffusersPolicy]:
    """A stock pipeline that loaded what was written, by diffusers' own loader; an adapter on the base at hand."""
    if target == "merged":
        pipe = policy.open_base(folder)
        yield DiffusersPolicy(policy.spec, pipe.to(policy.runtime.device), policy.weights, policy.runtime)
        return
    network = getattr(policy.pipe, policy.family.NETWORK)
    with without_adapters(network):
        policy.pipe.load_lora_weights(folder, weight_name=ADAPTER)
        network.to(policy.runtime.device)
        try:
            yield policy
        finally:
            policy.pipe.unload_lora_weights()


def description(policy: Any, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What an exported file says of itself: its base with a hash, the recipe, and the base's license."""
    return {
        "base": policy.spec.base,
        "base_sha256": base_hash(policy),
        "family": policy.name,
        "license": policy.spec.origin.license,
        "recipe": recipe,
    }


def base_hash(policy: DiffusersPolicy) -> str:
    """SHA-256 of the single file, or over the weight files of the network that was tuned."""
    if policy.spec.origin.single:
        return digest(policy.spec.origin.single.path)
    whole = hashlib.sha256()
    for file in sorted((policy.spec.local_folder / policy.family.NETWORK).glob("*.safetensors")):
        whole.update(bytes.fromhex(digest(file)))
    return whole.hexdigest()


def match(policy: Any, file: Path) -> Match:
    """Which layers of an adapter file this model's network has; diffusers reads the file's dialect.

    Raises:
        ConfigError: where the model takes no adapters.
        CheckpointError: where the file cannot be read, or is in no dialect that is known.
    """
    if not isinstance(policy, DiffusersPolicy):
        raise ConfigError("export --check: the built-in model takes no adapter files.")
    tensors, _ = read_weights(file)
    network = getattr(policy.pipe, policy.family.NETWORK)
    try:
        found = type(policy.pipe).lora_state_dict(tensors, unet_config=getattr(network, "config", None))
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: not an adapter that diffusers reads: {' '.join(str(error).split())}") from error
    names = {name.replace(".base_layer", "") for name, _ in network.named_modules()}
    prefix = policy.family.NETWORK + "."
    layers = {_layer(key) for key in (found[0] if isinstance(found, tuple) else found)}
    known = {layer for layer in layers if layer.removeprefix(prefix) in names and layer.startswith(prefix)}
    return Match(tuple(sorted(known)), tuple(sorted(layers - known)))


def _layer(key: str) -> str:
    """The layer that a tensor of an adapter belongs to, in the names that diffusers used before peft too."""
    older = re.sub(r"\.processor\.(to_[a-z]+)_lora\.", r".\1.lora.", key).replace(".to_out.lora.", ".to_out.0.lora.")
    return re.split(r"\.lora[._]|\.alpha|\.dora", older)[0]
