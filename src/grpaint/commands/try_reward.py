"""A reward tried on a folder of pictures: its self-test, and a score for each."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from torch import Tensor
from typer import echo

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt, Reward
from grpaint.core.reward import RewardBase
from grpaint.core.runtime import resolve
from grpaint.learn.reward_checks import self_test
from grpaint.learn.table import score_images
from grpaint.recipe.build import build
from grpaint.recipe.config import override
from grpaint.recipe.pieces import WeightedReward

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
AT_ONCE = 64  # pictures in memory


def run(
    kind: str, folder: Path, prompts: Path | None, references: Path | None, sets: list[str], *, as_json: bool
) -> None:
    """Test the reward ``kind``, score every picture of ``folder`` and print the scores.

    Raises:
        ConfigError, CheckpointError: the reward, the folder, a caption or a reference cannot be read.
        RewardError: the reward fails.
    """
    report = tried(opened(kind, sets), kind, folder, prompts, references)
    if as_json:
        echo(json.dumps(report))
    else:
        Console().print(shown(report))


def opened(kind: str, sets: Sequence[str]) -> WeightedReward:
    """A reward by name with its own settings, its files looked at.

    Raises:
        ConfigError, CheckpointError: where there is none, or a file or package is missing.
    """
    item, _ = build(WeightedReward, override({"kind": kind}, sets), "reward")
    assert isinstance(item, WeightedReward)
    item.check("reward")
    return item


def tried(
    item: WeightedReward, kind: str, folder: Path, prompts: Path | None, references: Path | None
) -> dict[str, Any]:
    """Scores by file name, with their mean, spread, best and worst, and what the self-test gave.

    Raises:
        ConfigError: where the folder has no pictures, one cannot be read, or a caption or a reference is missing.
        RewardError: where the reward fails.
    """
    reward, device = item.reward, resolve("auto", "fp32").device
    files = _pictures(folder)
    asked = _prompts(files, reward, _captions(prompts), references)
    first = [_read(file).to(device) for file in files[:1]] * 2
    test = self_test(kind, reward, torch.stack(first), [asked[0]] * 2) if item.self_test else None
    scores: dict[str, float] = {}
    for begin in range(0, len(files), AT_ONCE):
        part = range(begin, min(begin + AT_ONCE, len(files)))
        by_size: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
        for row in part:
            image = _read(files[row])
            by_size[image.shape].append((row, image))
        for rows in by_size.values():
            batch = torch.stack([image for _, image in rows]).to(device)
            found = score_images(kind, reward, batch, [asked[row] for row, _ in rows])
            scores |= {files[row].name: score for (row, _), score in zip(rows, found.tolist(), strict=True)}
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    cut = reward.truncated(asked) if isinstance(reward, RewardBase) else None
    return {
        "reward": kind,
        "self_test": None if test is None else dict(zip(("better", "worse"), test[1].tolist(), strict=True)),
        "images": len(scores),
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "best": max(scores, key=lambda name: scores[name]),
        "worst": min(scores, key=lambda name: scores[name]),
        "truncated": cut,
        "scores": dict(sorted(scores.items())),
    }


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: no such folder.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f"--images {folder}: no pictures in it. There may be {', '.join(SUFFIXES)}.")
    return files


def _read(file: Path) -> Tensor:
    """A picture as ``[3, h, w]`` in [0, 1]."""
    try:
        with Image.open(file) as opened_file:
            levels = np.asarray(opened_file.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{file}: not a picture that can be read ({error}).") from error
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 255


def _captions(file: Path | None) -> dict[str, Prompt]:
    """Prompts by picture name: lines ``NAME<tab>CAPTION``, or JSON with ``file_name``, ``text`` and whatever else."""
    out: dict[str, Prompt] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n") if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {file}: cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if file and file.suffix == ".jsonl":
                said = json.loads(line)
                name, text = said.pop("file_name"), said.pop("text")
            else:
                (name, text), said = line.split("\t"), {}
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"--prompts {file}: line {number} is not NAME<tab>CAPTION, nor JSON with file_name and text."
            ) from error
        out[str(name)] = Prompt(str(text), said)
    return out


def _beside(file: Path) -> Prompt | None:
    """The caption in a picture's ``.txt``, or in its ``.json``: ``text``, or the ``sentence`` of drawn scenes."""
    try:
        if (place := file.with_suffix(".txt")).is_file():
            return Prompt(place.read_text(encoding="utf-8").strip())
        if (place := file.with_suffix(".json")).is_file():
            said = json.loads(place.read_text(encoding="utf-8"))
            text = said.get("text") or said.get("sentence")
            return Prompt(text, said) if isinstance(text, str) else None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{place}: cannot be read ({error}).") from error
    return None


def _prompts(
    files: Sequence[Path], reward: Reward, captions: Mapping[str, Prompt], references: Path | None
) -> list[Prompt]:
    """The prompt of every picture; one that reads no caption gets an empty one, one of a user's may."""
    needs = isinstance(reward, RewardBase) and reward.needs_caption
    out = []
    for file in files:
        prompt = captions.get(file.name) or _beside(file)
        if prompt is None and needs:
            raise ConfigError(
                f"{file}: has no caption, and this reward reads one; write {file.stem}.txt, or --prompts."
            )
        prompt = prompt or Prompt("")
        if getattr(reward, "needs_reference", False):
            if references is None or not (references / file.name).is_file():
                raise ConfigError(f"{file}: has no reference of its name; name their folder: --references DIR.")
            prompt = Prompt(prompt.text, prompt.metadata, _read(references / file.name))
        out.append(prompt)
    return out


def shown(found: Mapping[str, Any]) -> Table:
    """What was found, for the terminal."""
    table = Table("", found["reward"], title=None)
    test = found["self_test"]
    table.add_row("self-test", f"better {test['better']:.4g}, worse {test['worse']:.4g}" if test else "has none")
    table.add_row("images", str(found["images"]))
    table.add_row("mean", f"{found['mean']:.4g}")
    table.add_row("std", f"{found['std']:.4g}")
    if found["images"] > 1 and not found["std"]:
        table.add_row("", "every picture scored alike: a run would learn nothing from it")
    for which in ("best", "worst"):
        table.add_row(which, f"{found['scores'][found[which]]:.4g}  {found[which]}")
    if found["truncated"] is not None:
        table.add_row("captions cut", str(found["truncated"]))
    return table
