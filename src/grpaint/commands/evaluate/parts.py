"""Draw and score the images of every candidate in parts of 64 prompts, one record per part.

A repeated command continues with the first part that has no record.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpaint.commands.evaluate.candidates import Candidate, Judging, check_equal_model, piece_settings, weights_hash
from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Prompt, Weights
from grpaint.core.runtime import resolve as resolve_runtime
from grpaint.images.encoding import eight_bit
from grpaint.judge import denoising_loss, sample
from grpaint.learn.table import RewardSet
from grpaint.measures.image_statistics import image_statistics
from grpaint.measures.likeness import likeness
from grpaint.parallel.world import ONE, World
from grpaint.recipe.build import dump
from grpaint.recipe.pieces import Model
from grpaint.report.figures import save_picture, to_picture
from grpaint.storage.files import read_weights, tensors_digest, write_weights

PART = 64  # prompts per record
SHOWN = 8  # prompts, the first, whose images are recorded for the page
REFERENCE = "reference"
KEPT = "kept/"  # before the protocol: the images of a part, which --keep saves; not in its record
IRRELEVANT = {
    "start",
    "adapter",
    "cache",
    "embeddings",
    "batch",
    "vae_batch",
    "checkpointing",
}  # settings of [model] that do not change an image

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class EvaluationParts:
    """The records of one command in its folder ``out``.

    ``held_out`` has the prompts and their references in order, opened one part at a time; ``keep``: save every image.
    The processes of ``world`` divide each part, and the first one writes its record.
    """

    judging: Judging
    out: Path
    held_out: CaptionedImages
    log: Callable[[str], None]
    keep: bool = False
    world: World = ONE

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The held-out prompts."""
        return self.held_out.prompts

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Yield the number and the rows of each part."""
        for number, first in enumerate(range(0, len(self.prompts), PART)):
            yield number, slice(first, min(first + PART, len(self.prompts)))

    def fingerprint(self) -> str:
        """A hash of everything that a record depends on, except the model."""
        recipe, measure = self.judging.recipe, self.judging.measure
        rewards = {
            name: piece_settings(r)
            for flag in (True, False)
            for name, r in self.judging.rewards(referenced=flag).items()
        }
        settings = {
            "data": piece_settings(recipe.data),
            "evaluate": dump(recipe.evaluate),
            **({"deploy": dump(recipe.deploy)} if recipe.deploy else {}),
            "features": measure.features and measure.features.card(),
            "measure": [measure.strength, measure.group, measure.group_prompts],
            "rewards": rewards,
            "part": PART,
        }
        return _hash(settings)

    def file(self, name: str, number: int) -> Path:
        """The file of a part's record."""
        return self.out / "records" / name / f"{number:04d}.safetensors"

    def load(self, name: str) -> Tensors:
        """The tensors of all parts of a candidate, concatenated in order."""
        parts = [read_weights(self.file(name, number))[0] for number, _ in self.slices()]
        names = {key for part in parts for key in part}
        return {key: torch.cat([part[key] for part in parts if key in part]) for key in sorted(names)}

    def record_references(self) -> None:
        """Record the features of the reference images, and the first images for the page."""
        label = self.fingerprint()
        for number, rows in self.slices():
            self._record(REFERENCE, number, rows, label, self._reference_part)

    def record_candidate(self, candidate: Candidate, sets: Sequence[str]) -> dict[str, Any]:
        """Record the missing parts of a candidate.

        Returns its source, model settings and weights' hash and, with references, its denoising loss.

        Raises:
            ConfigError: a record was made with other settings or weights, or is damaged.
        """
        policy, recipe = candidate.open(sets, self.world)
        weights: Weights = "reference" if candidate.base else "average"
        facts = {
            "source": candidate.source,
            "weights": weights_hash(policy, weights),
            "of": weights,
            "model": dump(recipe.model),
        }
        runtime = resolve_runtime(recipe.device, recipe.precision)
        drawing = [{k: v for k, v in facts["model"].items() if k not in IRRELEVANT}, runtime.precision]
        check_equal_model(candidate.source, facts["weights"], self.world)
        label = f"{self.fingerprint()}-{facts['weights']}-{_hash(drawing)}"
        for number, rows in self.slices():
            if self._record(candidate.name, number, rows, label, partial(self._part, policy, weights)):
                self.log(f"{candidate.name}  {rows.stop} of {len(self.prompts)}")
        probe = self.judging.recipe
        if self.judging.referenced:
            facts["denoising_loss"] = denoising_loss(policy, probe.data, probe.evaluate, weights, self.world)
        return facts

    def _record(self, name: str, number: int, rows: slice, label: str, compute: Callable[[slice], Tensors]) -> bool:
        """Compute and write the record of a part, unless it is there; return whether it was missing."""
        if self.world.from_first(self.world.first and self._has_record(name, number, label)):
            return False
        tensors = self.world.gather(compute(rows))
        if self.world.first:
            images = {key.removeprefix(KEPT): tensors.pop(key) for key in list(tensors) if key.startswith(KEPT)}
            self._save_images(name, rows.start, images)
            self._write(name, number, tensors or {"none": torch.zeros(1)}, label)
        return True

    def _own(self, part: slice) -> slice:
        """Return the rows of a part that belong to this process."""
        share = self.world.share(part.stop - part.start)
        return slice(part.start + share.start, part.start + share.stop)

    def _reference_part(self, part: slice) -> Tensors:
        """Return the features of this process's reference images, and those of the first images of the page."""
        rows = self._own(part)
        if rows.start == rows.stop:
            return {}
        features, images = self.judging.measure.features, self.held_out.images(rows)
        tensors = {"features": features(images)} if features else {}
        return tensors | _shown({"free": images}, rows)

    def _part(self, policy: Model, weights: Weights, part: slice) -> Tensors:
        """Draw and score this process's prompts of a part; also score for others by rewards that a machine shares."""
        rows, judging = self._own(part), self.judging
        free, referenced = (judging.reward_set(referenced=flag) for flag in (False, True))
        opened = part if referenced.sharing.names and self.world.local_size > 1 else rows
        captioned: list[Prompt] = []
        if judging.referenced and opened.start < opened.stop:
            pairs = zip(self.prompts[opened], self.held_out.images(opened), strict=True)
            captioned = [dataclasses.replace(prompt, reference=image) for prompt, image in pairs]
        free, referenced = free.among(self.world, self.prompts[part]), referenced.among(self.world, captioned)
        own = captioned[rows.start - opened.start :][: rows.stop - rows.start]
        scores = self._draw(policy, weights, rows, own, (free, referenced)) if rows.start < rows.stop else {}
        free.finish()
        referenced.finish()
        return scores

    def _draw(
        self,
        policy: Model,
        weights: Weights,
        rows: slice,
        captioned: Sequence[Prompt],
        rewards: tuple[RewardSet, RewardSet],
    ) -> Tensors:
        """Draw and score some prompts: free generation and, of ``captioned`` ones with references, reconstruction."""
        settings, measure = self.judging.recipe.evaluate, self.judging.measure
        prompts = self.prompts[rows]
        sampling = {"weights": weights, "first": rows.start}
        free = sample(policy, prompts, settings, **sampling)
        statistics = image_statistics(free)
        del statistics["image/spread"]  # depends on the batch, and a part is not the batch of a training run
        out = {f"free/{key}": values for key, values in self._scores(rewards[0], free, prompts).items()}
        out |= {f"free/{key}": values for key, values in statistics.items()}
        pictures = {"free": free}
        if captioned:
            again = sample(policy, captioned, settings, start=self.judging.start, **sampling)
            images = torch.stack([prompt.reference for prompt in captioned if prompt.reference is not None])
            scores = dict(rewards[1].score(again, captioned).columns) | likeness(again, images)
            out |= {f"reconstruction/{key}": values for key, values in scores.items()}
            pictures["reconstruction"] = again
        if deployed := self.judging.recipe.deployed:
            pictures["deployed"] = sample(policy, prompts, deployed, **sampling)
            scores = self._scores(rewards[0], pictures["deployed"], prompts)
            out |= {f"deployed/{key}": values for key, values in scores.items()}
        if measure.features:
            out["features"] = measure.features(free)
            grouped = prompts[: max(0, measure.group_prompts - rows.start)]
            more = [sample(policy, grouped, settings, draw=k, **sampling) for k in range(1, measure.group) if grouped]
            if more:
                every = [out["features"][: len(grouped)], *(measure.features(drawing) for drawing in more)]
                out["groups"] = torch.stack(every, 1)
        out |= _shown(pictures, rows)
        if self.keep:
            out |= {f"{KEPT}{part}": eight_bit(batch) for part, batch in pictures.items()}
        return {key: values.contiguous() for key, values in out.items()}

    def _scores(self, rewards: RewardSet, images: Tensor, prompts: Sequence[Prompt]) -> Tensors:
        """The data's measures and the rewards of freely generated images, one value per image."""
        scores = self.judging.recipe.data.measures(images, prompts) | dict(rewards.score(images, prompts).columns)
        return scores | self._total(scores)

    def _total(self, scores: Tensors) -> Tensors:
        """The recipe's weighted reward, summed over its rewards that need no reference; empty if it has none."""
        weights = {f"reward/{name}": r.weight for name, r in self.judging.recipe.rewards.items()}
        parts = [weights[name] * scores[name] for name in weights if name in scores]
        return {"reward": torch.stack(parts).sum(0)} if parts else {}

    def _save_images(self, name: str, first: int, images: Tensors) -> None:
        for protocol, batch in images.items():
            for row, image in enumerate(batch, first):
                save_picture(
                    to_picture(image, image.shape[-1]), self.out / "images" / name / protocol / f"{row:06d}.png"
                )

    def _has_record(self, name: str, number: int, label: str) -> bool:
        file = self.file(name, number)
        if not file.is_file():
            return False
        tensors, header = read_weights(file)
        if header.get("fingerprint") != label:
            raise ConfigError(
                f"{file}: made with other settings or weights than this command's. Take another --out, or remove it."
            )
        if header.get("xxh3_128") != tensors_digest(tensors):
            raise ConfigError(
                f"{file}: damaged: its XXH3-128 is not that of what was written. Remove it, and it is written again."
            )
        return True

    def _write(self, name: str, number: int, tensors: Tensors, label: str) -> None:
        file = self.file(name, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(file, tensors, {"fingerprint": label, "xxh3_128": tensors_digest(tensors)})


def _shown(pictures: Tensors, rows: slice) -> Tensors:
    """Return those of the pictures of some prompts that are recorded for the page."""
    count = max(0, SHOWN - rows.start)
    return {f"shown/{part}": eight_bit(batch[:count]) for part, batch in pictures.items() if count}


def _hash(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
