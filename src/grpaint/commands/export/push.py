"""``grpaint export --push OWNER/NAME``: upload an exported folder to a hub, with a model card."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from grpaint.core.errors import ConfigError, MissingExtra, RunError
from grpaint.core.text import one_line
from grpaint.storage.hub import is_hub_id

CARD = "README.md"
LOADING = {
    "diffusers": 'pipe = DiffusionPipeline.from_pretrained({base!r})\n{loader}("{name}")',
    "comfyui": "# the file also goes into ComfyUI's and A1111's folder of LoRAs\n"
    'pipe = DiffusionPipeline.from_pretrained({base!r})\n{loader}("{name}")',
    "merged": 'pipe = DiffusionPipeline.from_pretrained("{name}")',
}


def check_login(repository: str) -> str:
    """Check that an upload will be possible, before anything is computed; return the name of the user.

    Raises:
        ConfigError: ``repository`` is not OWNER/NAME, the network is forbidden, or nobody is logged in.
    """
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import LocalTokenNotFoundError
    except ImportError as error:
        raise MissingExtra("--push", "diffusers") from error
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise ConfigError(f"--push {repository}: write it as OWNER/NAME.")
    if constants.is_offline_mode():
        raise ConfigError(
            f"--push {repository}: the network is forbidden by --offline or HF_HUB_OFFLINE; leave it out."
        )
    try:
        return str(HfApi().whoami()["name"])
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"--push {repository}: nobody is logged in. Run `hf auth login`, or set HF_TOKEN.") from error
    except Exception as error:  # its HTTP client's, too
        raise ConfigError(
            f"--push {repository}: the hub does not know this login ({one_line(str(error), 160)})."
        ) from error


def files_to_upload(folder: Path) -> list[tuple[str, int]]:
    """Return the files that would be uploaded, each with its size in bytes."""
    return [(str(f.relative_to(folder)), f.stat().st_size) for f in sorted(folder.rglob("*")) if f.is_file()]


def push(folder: Path, repository: str) -> str:
    """Upload a folder into a repository, which is private if it is new; return the address of the commit.

    Raises:
        RunError: the hub refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="grpaint export").commit_url
        )
    except Exception as error:  # its HTTP client's, too
        raise RunError(
            f"--push {repository}: the hub refuses ({one_line(str(error), 160)}). {folder} stays; when that is fixed: "
            f"hf upload {repository} {folder}"
        ) from error


def card(
    repository: str,
    target: str,
    about: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    loader: str = "pipe.load_lora_weights",
) -> str:
    """Return the model card: base, license, how to load it, what was measured, and the recipe.

    ``about`` is what the exported files record; ``evaluations`` are the lines of evaluations.jsonl, or none;
    ``loader`` is the call that loads an adapter.
    """
    base, _, commit = str(about["base"]).partition("@")
    on_hub = is_hub_id(base)
    name = repository.partition("/")[2]
    origin = f"{base} at commit {commit}" if commit else base if on_hub else f"a local copy, {Path(base).name}"
    loading = LOADING[target].format(base=base if on_hub else "BASE", name=repository, loader=loader)
    return "\n".join(
        [
            "---",
            _metadata(name, base if on_hub else None, about, evaluations),
            "---",
            f"# {name}",
            "",
            f"{'A pipeline' if target == 'merged' else 'An adapter'}, post-trained with grpaint.",
            "",
            f"- Base: {origin} (family {about['family']}, SHA-256 `{about['base_sha256']}`)",
            f"- License of the base: {about['license'] or 'the base does not say; find out before you share this'}",
            *_frozen(about),
            "",
            "```python",
            "from diffusers import DiffusionPipeline",
            "",
            loading,
            "```",
            "",
            *_measured(evaluations),
            "## Recipe",
            "",
            "```toml",
            tomli_w.dumps(_public(about["recipe"])).rstrip(),
            "```",
            "",
        ]
    )


def _frozen(about: Mapping[str, Any]) -> list[str]:
    """A line for each frozen adapter of the recipe, which says whether it is in these files."""
    merged = {adapter["name"] for adapter in about.get("frozen", ())}
    return [
        f"- Frozen adapter {adapter['name']} x {adapter['weight']:g}, {Path(adapter['path']).name}: "
        + ("merged into these files" if adapter["name"] in merged else "not in these files; load it beside them")
        for adapter in about["recipe"].get("model", {}).get("frozen", ())
    ]


def _metadata(name: str, base: str | None, about: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Return the YAML at the top of the card, with the last evaluation as results; ``base`` is a hub id."""
    from huggingface_hub import EvalResult, ModelCardData

    data = Path(str(about["recipe"].get("data", {}).get("kind", "prompts"))).name
    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=data,
            dataset_name=f"held-out prompts of {data}",
            metric_type=metric,
            metric_value=evaluations[-1][metric],
        )
        for metric in _metrics(evaluations)
    ]
    metadata = ModelCardData(
        base_model=base,
        eval_results=results or None,
        library_name="diffusers",
        license=about["license"] or None,
        model_name=name if results else None,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "grpaint"],
    )
    return metadata.to_yaml()


def _metrics(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of measures with an interval that the first and the last evaluation have."""
    if not evaluations:
        return []
    return [name for name in evaluations[-1] if f"{name}_interval" in evaluations[-1] and name in evaluations[0]]


def _public(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the paths of this machine cut to their last name."""
    model = dict(recipe.get("model", {}))
    for key in ("base", "config", "start", "adapter"):
        if model.get(key) and not is_hub_id(str(model[key])):
            model[key] = Path(str(model[key])).name
    if "frozen" in model:
        model["frozen"] = [{**adapter, "path": Path(adapter["path"]).name} for adapter in model["frozen"]]
    return {**recipe, "model": model}


def _measured(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the first and the last evaluation, with their 95% intervals."""
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    where = f"{last['prompts']} held-out prompts, {last['steps']} steps, guidance {last['guidance']:g}"
    return [
        "## Measured",
        "",
        f"On {where}; 95% intervals in brackets.",
        "",
        f"| | before | after {last['iteration']} iterations |",
        "|---|---|---|",
        *(f"| {name} | {_value(first, name)} | {_value(last, name)} |" for name in _metrics(evaluations)),
        "",
    ]


def _value(line: Mapping[str, Any], name: str) -> str:
    low, high = line[f"{name}_interval"]
    return f"{line[name]:.4f} ({low:.4f} to {high:.4f})"
