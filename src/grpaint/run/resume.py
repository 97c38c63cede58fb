"""The settings with which a run goes on: those that it began with, but for its length and how work is split."""

import re
from collections.abc import Iterator
from typing import Any

from grpaint.core.errors import ConfigError
from grpaint.recipe.config import Recipe, keep_commits, locate, override, resolve
from grpaint.run.folder import RunFolder
from grpaint.storage.reading import read_toml

# Besides the length of a run --resume may change how a reward in another process is reached, which changes no score,
# how often pictures are drawn, and how work is split into parts, which changes gradients by rounding alone.
CHANGEABLE_ON_RESUME = (
    r"train\.overlap|rewards\.[^.]+\."
    "(urls?|token_env|timeout_s|start_s|retries|restarts|backoff_s|concurrency|python|place|votes|wait_s)"
    r"|processes(\..*)?|evaluate\.pictures_every|model\.(batch|vae_batch|checkpointing)"
    r"|objective\.minibatch|anchor\.loss\.minibatch"
)


def all_sets(folder: RunFolder, sets: list[str]) -> list[str]:
    """The ``--set`` items that the run began with, then the new ones."""
    return [item for item in folder.facts().get("sets", []) if item not in sets] + sets


def settings_to_resume(
    folder: RunFolder, stage: str, name: str | None, sets: list[str]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe and settings with which a run continues.

    Raises:
        ConfigError: a setting that may not change on resume differs from the run's.
    """
    before = folder.settings()
    table = override(before, sets) if name is None else override(read_toml(locate(name)), all_sets(folder, sets))
    recipe, settings = resolve(keep_commits(table, before), stage)
    _check(f"the run {folder.path}", before, settings, stage)
    if made_with := folder.made_with():
        subject = f"run.toml was changed by hand, and the checkpoint that {folder.path} goes on from"
        _check(subject, made_with, settings, stage)
    return recipe, settings


def _check(subject: str, before: dict[str, Any], now: dict[str, Any], stage: str) -> None:
    """Refuse to resume a run with other settings, but for a greater length and :data:`CHANGEABLE_ON_RESUME`.

    ``before`` are the settings of ``subject``, the run or its checkpoint; ``now`` are those of this command. Where they
    differ, ``before`` is built, which gives it the defaults of settings that are newer than the run.

    Raises:
        ConfigError: another setting differs.
    """
    if not any(_fixed_differences(before, now)):
        return
    for key, old, new in _fixed_differences(resolve(before, stage)[1], now):
        raise ConfigError(
            f"{key} = {new!r}: {subject} has {old!r}; --resume repeats a run's settings (only larger "
            "train.iterations and train.evaluations, where rewards are found, evaluate.pictures_every, model.batch, "
            "model.vae_batch, model.checkpointing and minibatch may differ). Start another run with another --name."
        )


def _fixed_differences(before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value of each setting that differs and may not."""
    for key, old, new in setting_differences(before, now):
        limits = key in ("train.iterations", "train.evaluations") and isinstance(old, int) and isinstance(new, int)
        if not (limits and _longer(old, new)) and not re.fullmatch(CHANGEABLE_ON_RESUME, key):
            yield key, old, new


def _longer(old: int, new: int) -> bool:
    """Whether a limit is raised; 0 is no limit."""
    return new == 0 or 0 < old < new


def setting_differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value of each setting that differs, a changed ``kind`` first."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "kind", name)):
            yield from setting_differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new
