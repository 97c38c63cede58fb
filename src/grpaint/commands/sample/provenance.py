"""The metadata of a saved picture, with which it can be drawn again by grpaint or by diffusers alone."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL.PngImagePlugin import PngInfo

from grpaint.backends.adapter_files import PEFT_FILE, adapter_file
from grpaint.backends.diffusers_policy import DiffusersPolicy
from grpaint.backends.families.folder import SCHEDULER
from grpaint.backends.families.schedule import stock_grid_matches
from grpaint.backends.frozen import frozen_facts
from grpaint.core.errors import ConfigError
from grpaint.core.importing import ForeignCode
from grpaint.core.rng import seed_of
from grpaint.core.step import Ode, Sampler
from grpaint.images.pictures import BadImage, open_picture
from grpaint.recipe.build import build, dump
from grpaint.recipe.deployment import DeployedEvaluation
from grpaint.recipe.trust import DrawingRecipe, Origin
from grpaint.storage.files import digest
from grpaint.storage.reading import parse_object, read_regular

KEY = "grpaint"
NOT_COMPARED = {"base", "config", "start", "adapter", "frozen"}  # settings of [model] that name files


@dataclass(frozen=True)
class Provenance:
    """How a picture was drawn; ``evaluate``: its sampler, steps, tuned share and guidance. ``model``: only compared.

    ``order``: of the sampler. ``frozen``: the frozen adapters that were on.
    """

    source: str
    weights_sha256: str
    prompt: str
    seed: int
    evaluate: dict[str, Any]
    model: dict[str, Any]
    order: Literal[1, 2]
    frozen: tuple["FrozenFacts", ...]


@dataclass(frozen=True)
class FrozenFacts:
    """A frozen adapter with which a picture was drawn: its name, weight, and the hash of its file."""

    name: str
    weight: float
    sha256: str


@dataclass(frozen=True)
class _Record:
    """What a picture's metadata must hold, besides the settings of its model."""

    source: str
    weights_sha256: str
    prompt: str
    seed: int
    steps: int
    sampler: Sampler
    tuned_share: float
    guidance: float
    order: Literal[1, 2] = 1
    frozen: tuple[FrozenFacts, ...] = ()


def drawing_facts(
    source: str, hashes: Mapping[str, Any], model: Any, settings: DeployedEvaluation, prompt: str, seed: int
) -> dict[str, Any]:
    """Everything that determines a picture: prompt, seed, sampler, steps, guidance, model settings and weights.

    ``hashes``: ``weights_sha256`` and ``frozen``, which are those of all pictures of a command.
    """
    return {
        "source": source,
        "prompt": prompt,
        "seed": seed,
        **settings.facts,
        **hashes,
        "model": dump(model),
    }


def png_metadata(facts: dict[str, Any]) -> PngInfo:
    """Pack the facts into a text chunk of a PNG."""
    out = PngInfo()
    out.add_text(KEY, json.dumps(facts))
    return out


def read_provenance(file: Path, sets: Sequence[str], *, trust: bool) -> Provenance:
    """Read how a picture was drawn; its sampler may name code only if ``trust`` is set, or ``sets`` name it too.

    Raises:
        ConfigError: it is not a picture, or its metadata is missing, damaged or incomplete, or names code.
    """
    try:
        text = open_picture(read_regular(file)).info.get(KEY)
    except BadImage as bad:
        raise ConfigError(f"--like {file}: not a picture that can be read ({bad}).") from None
    if not isinstance(text, str):
        raise ConfigError(f"--like {file}: it does not say how it was drawn; only pictures of `grpaint sample` do.")
    facts, origin = parse_object(text, f"--like {file}"), Origin(file, trust)
    model = facts.pop("model", None)
    if not isinstance(model, dict):
        raise ConfigError(f"--like {file}: its metadata lacks the settings of its model.")
    try:
        with origin.guard(sets):
            record, plain = build(_Record, facts, "")
    except ForeignCode:
        raise
    except ConfigError as error:
        raise ConfigError(f"--like {file}: its metadata cannot be used: {error}") from error
    evaluate = {key: plain[key] for key in ("sampler", "steps", "tuned_share", "guidance")}
    return Provenance(
        source=record.source,
        weights_sha256=record.weights_sha256,
        prompt=record.prompt,
        seed=record.seed,
        evaluate=evaluate,
        model=model,
        order=record.order,
        frozen=record.frozen,
    )


def check_provenance(picture: Path, record: Provenance, file: Path, recipe: DrawingRecipe) -> None:
    """Check that the weights and the model's settings are those that a picture was drawn with.

    Raises:
        ConfigError: a setting of the model, the weights or a frozen adapter differ.
    """
    names = [adapter.name for adapter in record.frozen]
    here = [FrozenFacts(**facts) for facts in frozen_facts(getattr(recipe.model, "frozen", ()), names)]
    for adapter in record.frozen:
        if adapter not in here:
            raise ConfigError(
                f'--like {picture}: drawn with the frozen adapter "{adapter.name}" x {adapter.weight:g} (SHA-256 '
                f"{adapter.sha256[:12]}..), which is not in [[model.frozen]] here; give it by --set model.frozen=.."
            )
    model = dump(recipe.model)
    settings = dataclasses.fields(recipe.model)  # type: ignore[arg-type]
    picture_settings = {field.name: field.default for field in settings if not dataclasses.is_dataclass(field.default)}
    picture_settings |= record.model  # an older picture lacks settings that are newer than it
    for key in sorted((record.model.keys() | model.keys()) - NOT_COMPARED):
        if picture_settings.get(key) != model.get(key):
            raise ConfigError(
                f"--like {picture}: drawn with model.{key} = {picture_settings.get(key)!r:.60}, here it is "
                f"{model.get(key)!r}; give it by --set model.{key}=.."
            )
    weights = digest(file)
    if weights != record.weights_sha256:
        raise ConfigError(
            f"--like {picture}: drawn with other weights than {file} holds (SHA-256 "
            f"{record.weights_sha256[:12]}.., here {weights[:12]}..); name the checkpoint that has them."
        )


def diffusers_script(policy: Any, settings: DeployedEvaluation, prompt: str, seed: int, weights: Path) -> str:
    """Return a Python script that draws the picture with diffusers alone.

    Raises:
        ConfigError: no stock pipeline draws with this model, sampler or setting.
    """
    _check_snippet(policy, settings)
    spec, family, distilled = policy.spec, policy.family, policy.distilled
    guidance = (spec.guidance, "distilled") if distilled else (settings.guidance, "cfg")
    height, width = spec.pixels
    arguments = {
        "num_inference_steps": settings.steps,
        "height": height,
        "width": width,
        **family.arguments(*guidance),
        **spec.stock_arguments,
    }
    words = "".join(f"    {key}={value!r},\n" for key, value in arguments.items())
    attributes = family.stock_settings(policy.pipe, height, width)
    attribute_lines = "".join(f"pipe.{key} = {value!r}\n" for key, value in attributes.items())
    without = "".join(f", {key}={value!r}" for key, value in family.WITHOUT.items())
    return (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(spec.local_folder)!r}, dtype={policy.runtime.dtype}{without})\n"
        f"{_scheduler_lines(policy)}"
        f"{attribute_lines}"
        f"{_guider_lines(policy, guidance[0])}"
        f'pipe.to("{policy.runtime.device}")\n'
        f"{_weight_lines(policy, weights, settings.frozen)}"
        f"latents = torch.empty({(1, *spec.sample_shape)}).normal_(\n"
        f"    generator=torch.Generator().manual_seed({seed_of(seed, 0, 'start', 0)})\n"
        ")\n"
        f"{family.packing}"
        "image = pipe(\n"
        f"    {prompt!r},\n"
        "    latents=latents.to(pipe.device, pipe.dtype),\n"
        f"{words}"
        ").images[0]\n"
        'image.save("image.png")\n'
    )


def _check_snippet(policy: Any, settings: DeployedEvaluation) -> None:
    """Raise ConfigError if no stock pipeline draws the same picture."""
    if not isinstance(policy, DiffusersPolicy):
        raise ConfigError("--snippet: diffusers cannot draw the built-in model.")
    if not isinstance(settings.sampler, Ode) or settings.tuned_share < 1 or settings.order > 1:
        raise ConfigError(
            "--snippet: a stock pipeline draws with the ODE alone, in first order, and one model; set another sampler."
        )
    spec, weight = policy.spec, settings.guidance
    for adapter in spec.frozen:
        if adapter.name in settings.frozen and adapter_file(adapter.file).name == PEFT_FILE:
            raise ConfigError(
                f'--snippet: diffusers does not read a folder of peft, as the frozen adapter "{adapter.name}" is; give '
                "--without-frozen, or export --for merged."
            )
    if spec.origin.single:
        raise ConfigError(f"--snippet: the base is one file, {spec.base}; export the run --for merged and name that.")
    if spec.clip_skip and policy.name == "sd15":
        raise ConfigError("--snippet: diffusers' clip_skip fails on Stable Diffusion's encoder of transformers 5.")
    if not policy.distilled and weight < 1:
        raise ConfigError(f"--snippet: stock pipelines have no guidance between 0 and 1, and it is {weight}.")
    if policy.family.NETWORK == "unet" and spec.tokens > pipe_tokens(policy):
        raise ConfigError(
            f"--snippet: model.tokens = {spec.tokens}, and the stock pipeline reads {pipe_tokens(policy)}."
        )
    if not stock_grid_matches(policy.path, settings.steps):
        raise ConfigError(
            f"--snippet: the stock DDIM of {settings.steps} steps misses its own grid, and would draw another picture; "
            "take a number of steps that divides the scheduler's num_train_timesteps."
        )
    if spec.base_precision != "full":
        raise ConfigError("--snippet: a stock pipeline opens the whole base; add --set model.base_precision=full.")
    if spec.adapter:
        raise ConfigError(f"--snippet: this adapter sits on the whole network {spec.start}; export it --for merged.")


def _scheduler_lines(policy: DiffusersPolicy) -> str:
    """Lines that give the stock pipeline the policy's scheduler settings."""
    changes = dict(policy.spec.origin.settings.changes.get(SCHEDULER, {}))
    lines = (
        f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **{changes!r})\n" if changes else ""
    )
    stock = policy.family.stock_ode(policy.pipe.scheduler, policy.path)
    if stock is None:
        return lines
    name, settings = stock
    words = "".join(f", {key}={value!r}" for key, value in settings.items())
    return lines + (
        f"from diffusers import {name}\npipe.scheduler = {name}.from_config(\n    pipe.scheduler.config{words}\n)\n"
    )


def _guider_lines(policy: DiffusersPolicy, guidance: float) -> str:
    """Lines that give a stock pipeline that is guided by parts of its own plain classifier-free guidance."""
    if not policy.family.GUIDERS:
        return ""
    parts = " = ".join(f"pipe.{part}" for part in policy.family.GUIDERS)
    return (
        f"from diffusers import ClassifierFreeGuidance\n{parts} = ClassifierFreeGuidance(guidance_scale={guidance!r})\n"
    )


def _weight_lines(policy: DiffusersPolicy, file: Path, frozen: Sequence[str]) -> str:
    """Lines that load the adapter or the network's weights, and the frozen adapters that are on."""
    on = [adapter for adapter in policy.spec.frozen if adapter.name in frozen]
    files = [(adapter_file(adapter.file), adapter.name, adapter.weight) for adapter in on]
    lines, loader = "", policy.family.lora_loader
    holder = loader.rpartition(".")[0]
    if policy.spec.lora:
        files = [(file, "trained", 1.0), *((path, f"frozen-{name}", weight) for path, name, weight in files)]
    else:
        lines = (
            "from safetensors.torch import load_file\n"
            f"pipe.{policy.family.NETWORK}.load_state_dict(load_file({str(file)!r}))\n"
        )
    if policy.spec.lora and not on:
        return f"{loader}({str(file.parent)!r}, weight_name={file.name!r})\n"
    for path, name, _ in files:
        lines += f"{loader}({str(path.parent)!r}, weight_name={path.name!r}, adapter_name={name!r})\n"
    if files:
        lines += f"{holder}.set_adapters({[name for _, name, _ in files]!r}, {[weight for *_, weight in files]!r})\n"
    return lines


def pipe_tokens(policy: DiffusersPolicy) -> int:
    """The number of caption tokens that a U-Net's stock pipeline reads."""
    return int(policy.pipe.tokenizer.model_max_length) - 2
