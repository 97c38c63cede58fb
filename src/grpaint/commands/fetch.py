"""``grpaint fetch``: download every file that a recipe needs, with sizes and hashes."""

from pathlib import Path
from typing import NamedTuple

from grpaint.backends import pipeline_files, single_file
from grpaint.recipe.build import Plain
from grpaint.recipe.config import locate, override, weights_of
from grpaint.recipe.trust import recipe_origin
from grpaint.report.console import echo
from grpaint.storage import hub
from grpaint.storage.files import local_path
from grpaint.storage.reading import read_toml


class Download(NamedTuple):
    """Files of a hub repository, and the recipe setting that takes the folder of their download."""

    setting: str
    repository: str
    files: list[hub.HubFile]


def fetch(name: str, sets: list[str], folder: Path, *, dry_run: bool, trust: bool) -> None:
    """List the files of a recipe's model and rewards, download them, and print the settings that name them.

    ``trust``: a run's own recipe may name code.

    Raises:
        ConfigError, CheckpointError: the hub has no such repository, or a file differs from the hub's size or hash.
    """
    table = override(read_toml(locate(name)), sets)
    with recipe_origin(name, trust=trust).guard(sets):
        downloads = [*_of_model(table.get("model", {})), *_of_rewards(table)]
    for download in downloads:
        for file in download.files:
            echo(f"{file.size:>14,}  {file.sha256 or '-':64}  {file.name}")
        total = sum(file.size for file in download.files)
        echo(f"{total:>14,}  bytes in {len(download.files)} files of {download.repository}")
    if not downloads:
        echo("nothing to fetch: no part of the recipe names a hub's repository")
    for setting, repository, files in [] if dry_run else downloads:
        echo(f'--set {setting}="{hub.download_files(setting, repository, files, folder)}"')


def _of_model(model: Plain) -> list[Download]:
    """The files of a diffusers pipeline; if the weights are one local file, only the configuration is needed."""
    base = str(model.get("base", ""))
    setting = "config" if single_file.is_single_file(base) else "base"
    if model.get("kind") != "diffusers" or not hub.is_hub_id(str(model.get(setting, ""))):
        return []
    parts = tuple(single_file.read_single_file(base).parts) if setting == "config" else ()
    return [Download(f"model.{setting}", *pipeline_files.pipeline_listing(model[setting], f"model.{setting}", parts))]


def _of_rewards(table: Plain) -> list[Download]:
    """The weights of rewards that are on a hub; for other missing ones, their origin is printed."""
    downloads = []
    for key, source in weights_of(table):
        if hub.is_hub_id(source.location):
            repository, files = hub.repository_files(source.location)
            files = [file for file in files if hub.matches_any(file.name, source.files)]
            downloads.append(Download(f"{key}.{source.setting}", repository, files))
        elif not local_path(source.location).exists():
            echo(f"{key}.{source.setting}: {source.files[0]} comes from {source.origin}")
    return downloads
