"""``grpaint reward try``: run a reward's self-test, then score a folder of pictures.

Pictures and captions are read by the readers of :mod:`grpaint.images`, as training reads them.
"""

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from grpaint.core.errors import ConfigError
from grpaint.core.policy import Prompt, Reward
from grpaint.core.reward import RewardBase
from grpaint.core.runtime import resolve
from grpaint.images.opening import open_source
from grpaint.images.pictures import SUFFIXES, BadImage, read_picture, to_tensor
from grpaint.images.sidecars import Fields, is_missing
from grpaint.images.sources import ImageEntry, ImageSource, read_image_file
from grpaint.learn.reward_checks import self_test
from grpaint.learn.table import score_images
from grpaint.recipe.build import build
from grpaint.recipe.config import override
from grpaint.recipe.pieces import WeightedReward
from grpaint.report.console import Terminal, echo
from grpaint.storage.reading import csv_rows, json_lines, read_text, text_lines

CAPTION, IMAGE = "text", "image"  # columns, as ``data.caption`` and ``data.image`` name them by default
AT_ONCE = 64  # pictures in memory


def run(
    kind: str, folder: Path, prompts: Path | None, references: Path | None, sets: list[str], *, as_json: bool
) -> None:
    """Test the reward ``kind``, score every picture of ``folder`` and print the scores.

    Raises:
        ConfigError, CheckpointError: the reward, the folder, a caption or a reference cannot be read.
        RewardError: the reward fails.
    """
    report = score_folder(open_reward(kind, sets), kind, folder, prompts, references)
    if as_json:
        echo(json.dumps(report))
    else:
        Terminal().print(report_table(report))


def open_reward(kind: str, sets: Sequence[str]) -> WeightedReward:
    """Build a reward by name with its own settings, and check the files that it needs.

    Raises:
        ConfigError, CheckpointError: no reward has this name, or a file or package is missing.
    """
    item, _ = build(WeightedReward, override({"kind": kind}, sets), "reward")
    assert isinstance(item, WeightedReward)
    item.check("reward")
    return item


def score_folder(
    item: WeightedReward, kind: str, folder: Path, captions_file: Path | None, references: Path | None
) -> dict[str, Any]:
    """Scores by picture name, with their mean, spread, best and worst, and the scores of the self-test.

    Raises:
        ConfigError: the folder has no pictures, one cannot be read, or a caption or a reference is missing.
        RewardError: the reward fails.
    """
    reward, device = item.reward, resolve("auto", "fp32").device
    source, entries = _open_pictures(folder)
    names = {entry.name for entry in entries}
    captions = _read_captions(captions_file, names) if captions_file else {}
    prompts = [_prompt(entry, folder, reward, captions, references) for entry in entries]
    first = _read_entry(source, folder, entries[0]).to(device)
    pair = self_test(kind, reward, torch.stack([first] * 2), [prompts[0]] * 2) if item.self_test else None
    scores: dict[str, float] = {}
    for rows, images in _batches(source, folder, entries):
        batch_scores = score_images(kind, reward, images.to(device), [prompts[row] for row in rows])
        scores |= {entries[row].name: score for row, score in zip(rows, batch_scores.tolist(), strict=True)}
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    return {
        "reward": kind,
        "self_test": None if pair is None else dict(zip(("better", "worse"), pair[1].tolist(), strict=True)),
        "images": len(scores),
        "left_out": dict(source.left_out()),
        "captions_of_no_image": [name for name in captions if name not in names],
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "best": max(scores, key=lambda name: scores[name]),
        "worst": min(scores, key=lambda name: scores[name]),
        "truncated": reward.truncated(prompts) if isinstance(reward, RewardBase) else None,
        "scores": dict(sorted(scores.items())),
    }


def _open_pictures(folder: Path) -> tuple[ImageSource, list[ImageEntry]]:
    source = open_source(folder, CAPTION, IMAGE, "--images")
    entries = source.entries()
    if not entries:
        left_out = "".join(f" {name}: {reason}." for name, reason in [*source.left_out().items()][:5])
        raise ConfigError(f"--images {folder}: no pictures in it. They end in {', '.join(SUFFIXES)}.{left_out}")
    return source, entries


def _read_entry(source: ImageSource, folder: Path, entry: ImageEntry) -> Tensor:
    """A picture as ``[3, h, w]`` in [0, 1]."""
    try:
        return to_tensor([read_picture(source.read(entry))])[0]
    except BadImage as bad:
        raise _unreadable(folder / entry.name, bad) from None


def _read_reference(file: Path) -> Tensor:
    try:
        return to_tensor([read_picture(read_image_file(file))])[0]
    except BadImage as bad:
        raise _unreadable(file, bad) from None


def _unreadable(file: Path, reason: object) -> ConfigError:
    return ConfigError(f"{file}: not a picture that can be read ({reason}).")


def _batches(source: ImageSource, folder: Path, entries: Sequence[ImageEntry]) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures of one size as ``[b, 3, h, w]``, with their rows in ``entries``."""
    for begin in range(0, len(entries), AT_ONCE):
        by_size: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
        for row in range(begin, min(begin + AT_ONCE, len(entries))):
            image = _read_entry(source, folder, entries[row])
            by_size[image.shape].append((row, image))
        for rows in by_size.values():
            yield [row for row, _ in rows], torch.stack([image for _, image in rows])


def _read_captions(file: Path, names: Set[str]) -> dict[str, Fields]:
    """The columns of each picture by its name: lines ``NAME<tab>CAPTION``, or rows with ``file_name`` and ``text``."""
    captions: dict[str, Fields] = {}
    read_rows = {".jsonl": json_lines, ".csv": csv_rows}.get(file.suffix.lower())
    for number, spelt, fields in _rows(file, read_rows(file)) if read_rows else _tab_captions(file):
        name = spelt if spelt in names else posixpath.normpath(spelt.replace("\\", "/"))
        if name in captions:
            raise ConfigError(f"--prompts {file}: line {number} is a second one for {name}.")
        captions[name] = fields
    return captions


def _rows(file: Path, rows: Iterable[tuple[int, Fields]]) -> Iterator[tuple[int, str, Fields]]:
    for number, fields in rows:
        name = fields.pop("file_name", None)
        if not isinstance(name, str) or not isinstance(fields.get(CAPTION), str):
            raise ConfigError(f'--prompts {file}: line {number} needs a "file_name" and a "{CAPTION}", both strings.')
        yield number, name, fields


def _tab_captions(file: Path) -> Iterator[tuple[int, str, Fields]]:
    for number, line in enumerate(text_lines(read_text(file)), 1):
        if not line.strip():
            continue
        if line.count("\t") != 1:
            raise ConfigError(
                f"--prompts {file}: line {number} is not NAME<tab>CAPTION; a .jsonl or .csv may have other columns."
            )
        name, text = line.split("\t")
        yield number, name, {CAPTION: text}


def _prompt(
    entry: ImageEntry, folder: Path, reward: Reward, captions: Mapping[str, Fields], references: Path | None
) -> Prompt:
    """A picture's prompt; its caption is empty if it has none and the reward reads none or is the user's own."""
    file, fields = folder / entry.name, captions.get(entry.name, entry.fields)
    texts = [fields[column] for column in (CAPTION, "sentence") if not is_missing(fields.get(column))]
    text = texts[0] if texts else ""  # drawn scenes have a sentence
    if not isinstance(text, str):
        raise ConfigError(f'{file}: its "{CAPTION}" must be a string, not {text!r:.60}.')
    if not text and isinstance(reward, RewardBase) and reward.needs_caption:
        raise ConfigError(f"{file}: has no caption, and this reward reads one; write {file.stem}.txt, or --prompts.")
    reference = None
    if getattr(reward, "needs_reference", False):
        if references is None or not (references / entry.name).is_file():
            raise ConfigError(f"{file}: has no reference of its name; name their folder: --references DIR.")
        reference = _read_reference(references / entry.name)
    return Prompt(text.strip(), {**fields, "file": entry.name}, reference)


def report_table(report: Mapping[str, Any]) -> Table:
    """The report of :func:`score_folder` as a table for the terminal."""
    table = Table("", report["reward"], title=None)
    pair = report["self_test"]
    table.add_row("self-test", f"better {pair['better']:.4g}, worse {pair['worse']:.4g}" if pair else "has none")
    table.add_row("images", str(report["images"]))
    for name, reason in report["left_out"].items():
        table.add_row("left out", f"{name}: {reason}")
    for name in report["captions_of_no_image"]:
        table.add_row("of no image", f"the caption of {name}")
    table.add_row("mean", f"{report['mean']:.4g}")
    table.add_row("std", f"{report['std']:.4g}")
    if report["images"] > 1 and not report["std"]:
        table.add_row("", "every picture scored alike: a run would learn nothing from it")
    for which in ("best", "worst"):
        table.add_row(which, f"{report['scores'][report[which]]:.4g}  {report[which]}")
    if report["truncated"] is not None:
        table.add_row("captions cut", str(report["truncated"]))
    return table
