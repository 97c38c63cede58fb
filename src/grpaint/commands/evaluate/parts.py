"""Images of every source in parts, scored as they are made: a record a part, so that the command can be repeated."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpaint.commands.evaluate.sources import Judging, Source, described, weights_hash
from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt, Reward, Weights
from grpaint.core.runtime import resolve as resolve_runtime
from grpaint.images.encoding import eight_bit
from grpaint.judge import denoising_loss, sample
from grpaint.learn.table import score_images
from grpaint.measures.image_statistics import image_statistics
from grpaint.measures.likeness import likeness
from grpaint.recipe.build import dump
from grpaint.recipe.pieces import Model
from grpaint.report.figures import save_picture, to_picture
from grpaint.storage.files import read_weights, write_weights

PART = 64  # prompts
SHOWN = 8  # of the first prompts, whose images stay for the page
REFERENCE = "reference"
ALIKE = {"start", "adapter", "cache", "embeddings", "batch", "vae_batch", "checkpointing"}  # of [model]: no other image

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """The records of one command in its folder; ``held_out`` has the references in order, opened a part at a time."""

    judging: Judging
    out: Path
    held_out: CaptionedImages
    log: Callable[[str], None]
    keep: bool = False

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The captions of the references."""
        return self.held_out.prompts

    def slices(self) -> Iterator[tuple[int, slice]]:
        """The parts, by number."""
        for number, first in enumerate(range(0, len(self.prompts), PART)):
            yield number, slice(first, min(first + PART, len(self.prompts)))

    def fingerprint(self) -> str:
        """Of everything but the model that a record depends on."""
        recipe, measure = self.judging.recipe, self.judging.measure
        rewards = {
            name: described(r) for flag in (True, False) for name, r in self.judging.rewards(referenced=flag).items()
        }
        said = {
            "data": described(recipe.data),
            "evaluate": dump(recipe.evaluate),
            "features": measure.features and measure.features.card(),
            "measure": [measure.strength, measure.group, measure.group_prompts],
            "rewards": rewards,
            "part": PART,
        }
        return _hash(said)

    def file(self, name: str, number: int) -> Path:
        """The tensors of a part's record."""
        return self.out / "records" / name / f"{number:04d}.safetensors"

    def load(self, name: str) -> Tensors:
        """All parts of a source, in order."""
        parts = [read_weights(self.file(name, number))[0] for number, _ in self.slices()]
        names = {key for part in parts for key in part}
        return {key: torch.cat([part[key] for part in parts if key in part]) for key in sorted(names)}

    def reference(self) -> None:
        """Features of the reference images, and the first of them for the page."""
        features, label = self.judging.measure.features, self.fingerprint()
        for number, rows in self.slices():
            if self._there(REFERENCE, number, label):
                continue
            images = self.held_out.images(rows)
            found: Tensors = {"features": features(images)} if features else {}
            if number == 0:
                found["shown/free"] = eight_bit(images[:SHOWN])
            self._write(REFERENCE, number, found or {"none": torch.zeros(1)}, label)

    def make(self, source: Source, sets: Sequence[str]) -> dict[str, Any]:
        """What is missing of a source, and what is known of it: its weights' hash, and its denoising loss.

        Raises:
            ConfigError: where a record was made with other settings or weights.
        """
        policy, recipe = source.open(sets)
        weights: Weights = "reference" if source.base else "average"
        known = {
            "source": source.source,
            "weights": weights_hash(policy, weights),
            "of": weights,
            "model": dump(recipe.model),
        }
        runtime = resolve_runtime(recipe.device, recipe.precision)
        drawn = [{k: v for k, v in known["model"].items() if k not in ALIKE}, runtime.precision]
        label = f"{self.fingerprint()}-{known['weights']}-{_hash(drawn)}"
        for number, rows in self.slices():
            if not self._there(source.name, number, label):
                self._write(source.name, number, self._part(policy, source.name, weights, rows), label)
                self.log(f"{source.name}  {rows.stop} of {len(self.prompts)}")
        probe = self.judging.recipe
        if self.judging.referenced:
            known["denoising_loss"] = denoising_loss(policy, probe.data, probe.evaluate, weights)
        return known

    def _part(self, policy: Model, name: str, weights: Weights, rows: slice) -> Tensors:
        """Both protocols for some prompts; without references the first alone."""
        settings, measure = self.judging.recipe.evaluate, self.judging.measure
        prompts = self.prompts[rows]
        drawn = {"weights": weights, "first": rows.start}
        free = sample(policy, prompts, settings, **drawn)
        statistics = image_statistics(free)
        del statistics["image/spread"]  # of a batch, and a part is not the batch of a training run
        out = {f"free/{key}": values for key, values in self._scores(free, prompts).items()}
        out |= {f"free/{key}": values for key, values in statistics.items()}
        pictures = {"free": free}
        if self.judging.referenced:
            images = self.held_out.images(rows)
            begun = [dataclasses.replace(p, reference=image) for p, image in zip(prompts, images, strict=True)]
            again = pictures["reconstruction"] = sample(policy, begun, settings, start=self.judging.start, **drawn)
            scores = _asked(self.judging.rewards(referenced=True), again, begun) | likeness(again, images)
            out |= {f"reconstruction/{key}": values for key, values in scores.items()}
        if measure.features:
            out["features"] = measure.features(free)
            grouped = prompts[: max(0, measure.group_prompts - rows.start)]
            more = [sample(policy, grouped, settings, draw=k, **drawn) for k in range(1, measure.group) if grouped]
            if more:
                every = [out["features"][: len(grouped)], *(measure.features(drawing) for drawing in more)]
                out["groups"] = torch.stack(every, 1)
        if rows.start == 0:
            out |= {f"shown/{part}": eight_bit(batch[:SHOWN]) for part, batch in pictures.items()}
        if self.keep:
            self._keep(name, rows.start, pictures)
        return {key: values.contiguous() for key, values in out.items()}

    def _scores(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensors:
        """What the data and the rewards say of freely generated images."""
        recipe = self.judging.recipe
        found = recipe.data.measures(images, prompts) | _asked(self.judging.rewards(referenced=False), images, prompts)
        return found | self._total(found)

    def _total(self, found: Tensors) -> Tensors:
        """The recipe's weighted reward, where it has one that needs no reference."""
        weights = {f"reward/{name}": r.weight for name, r in getattr(self.judging.recipe, "rewards", {}).items()}
        parts = [weights[name] * found[name] for name in weights if name in found]
        return {"reward": torch.stack(parts).sum(0)} if parts else {}

    def _keep(self, name: str, first: int, images: Tensors) -> None:
        for protocol, batch in images.items():
            for row, image in enumerate(batch, first):
                save_picture(
                    to_picture(image, image.shape[-1]), self.out / "images" / name / protocol / f"{row:06d}.png"
                )

    def _there(self, name: str, number: int, label: str) -> bool:
        file = self.file(name, number)
        if not file.is_file():
            return False
        if read_weights(file)[1].get("fingerprint") != label:
            raise ConfigError(
                f"{file}: made with other settings or weights than this command's. Take another --out, or remove it."
            )
        return True

    def _write(self, name: str, number: int, tensors: Tensors, label: str) -> None:
        file = self.file(name, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(file, tensors, {"fingerprint": label})


def _asked(rewards: dict[str, Reward], images: Tensor, prompts: Sequence[Prompt]) -> Tensors:
    return {name: score_images(name, reward, images, prompts) for name, reward in rewards.items()}


def _hash(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
