"""Numbers from scores: values, differences from the first source with bootstrap intervals, and a card beside each."""

import importlib.metadata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grpaint.commands.evaluate.parts import REFERENCE, Parts, Tensors
from grpaint.commands.evaluate.sources import NEIGHBOURS, STANDS_FOR, described
from grpaint.measures.distances import KernelDistance, Moments, frechet_distance, pairwise_distance, recall_hits
from grpaint.measures.features import file_hash
from grpaint.measures.hacking import Watch, hacking_alarm
from grpaint.measures.intervals import resample_counts, resampled_mean_interval
from grpaint.recipe.build import dump
from grpaint.rewards.scenes import SceneCleanliness, SceneDistance, SceneScorer
from grpaint.scenes.scorer import SHIPPED

FREE, RECONSTRUCTION = "free generation", "reconstruction"
LOWER = ("fid", "kid", "background", "patch_energy", "image/grid_energy", "denoising_loss")  # is better
NORMAL_95 = 1.959964
PIXELS = {"ssim": "torchmetrics", "psnr": "torchmetrics"}


@dataclass(frozen=True)
class Assessed:
    """All records of a command, and what follows from them; the first source is what the others are compared with."""

    parts: Parts
    sources: Mapping[str, Mapping[str, Any]]  # what is known of each, in order

    @cached_property
    def scores(self) -> dict[str, Tensors]:
        """The tensors of each source."""
        return {name: self.parts.load(name) for name in self.sources}

    @cached_property
    def reference(self) -> Tensors:
        """Those of the reference images, where there are any."""
        return self.parts.load(REFERENCE) if self.parts.judging.referenced else {}

    @property
    def first(self) -> str:
        """The source that the others are compared with."""
        return next(iter(self.sources))

    @cached_property
    def categories(self) -> dict[str, Tensor]:
        """Rows by category of their prompts."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, prompt in enumerate(self.parts.prompts):
            rows[self.parts.judging.recipe.data.category(prompt)].append(row)
        return {name: torch.tensor(index) for name, index in sorted(rows.items())}

    # -- measures ------------------------------------------------------------------------------------------------

    def measures(self) -> list[dict[str, Any]]:
        """Every measure with its protocol, card, values and differences."""
        known = self.scores[self.first]
        rows = [self._by_image(*key.split("/", 1)) for key in known if key.startswith(("free/", "reconstruction/"))]
        return [*self._distances(), *self._diversity(), *rows, *self._denoising()]

    def _by_image(self, part: str, name: str) -> dict[str, Any]:
        """A measure of single images: means, by category too, their differences over the same prompts."""
        columns = {source: scores[f"{part}/{name}"].double() for source, scores in self.scores.items()}
        protocol = FREE if part == "free" else RECONSTRUCTION
        every = torch.arange(len(self.parts.prompts))
        by = {kind: self._means(columns, rows) for kind, rows in self.categories.items()}
        return self._entry(name, protocol, self._own_card(name)) | self._means(columns, every) | {"by_category": by}

    def _means(self, columns: Mapping[str, Tensor], rows: Tensor) -> dict[str, Any]:
        draws, base = self.parts.judging.measure.draws, columns[self.first][rows]

        def said(values: Tensor) -> dict[str, Any]:
            mean, ends = values.mean().item(), resampled_mean_interval(values, draws)
            return {"value": mean, "interval": ends, "images": len(values)}

        values = {source: said(column[rows]) for source, column in columns.items()}
        moved = {source: said(column[rows] - base) for source, column in columns.items() if source != self.first}
        return {"values": values, "differences": moved}

    def _distances(self) -> list[dict[str, Any]]:
        """FID and KID; their intervals are resampled over generated images, alike for all sources."""
        if "features" not in self.reference:
            return []
        measure, reference = self.parts.judging.measure, self.reference["features"]
        count = len(reference)
        times = resample_counts(count, measure.image_draws)
        moments = Moments.of(reference)
        fid, kid = {}, {}
        for source, scores in self.scores.items():
            features, kernel = scores["features"], KernelDistance(scores["features"], reference)
            drawn = [torch.arange(count).repeat_interleave(row.long()) for row in times]
            fid[source] = torch.tensor(
                [frechet_distance(Moments.of(features[rows]), moments) for rows in (torch.arange(count), *drawn)]
            )
            kid[source] = torch.tensor([kernel(None), *(kernel(row) for row in times)])
        card = {"references": count, "few": measure.features is not None and count <= measure.features.width}
        return [
            self._entry("fid", FREE, card) | self._spread(fid),
            self._entry("kid", FREE, card | {"kernel": "(x y / d + 1)^3, all images"}) | self._spread(kid),
        ]

    def _spread(self, found: Mapping[str, Tensor]) -> dict[str, Any]:
        """Values with 1.96 bootstrap standard deviations either way.

        Percentiles would not do: a resample repeats images, so its distance lies above that of all images.
        """

        def said(column: Tensor) -> dict[str, Any]:
            value, half = column[0].item(), NORMAL_95 * column[1:].std().item()
            return {"value": value, "interval": [value - half, value + half], "images": len(self.parts.prompts)}

        base = found[self.first]
        moved = {source: said(column - base) for source, column in found.items() if source != self.first}
        return {"values": {source: said(column) for source, column in found.items()}, "differences": moved}

    def _diversity(self) -> list[dict[str, Any]]:
        """Distance within a prompt, and recall over the reference images."""
        measure = self.parts.judging.measure
        if not measure.features:
            return []
        within = {}
        for source, scores in self.scores.items():
            groups = scores["groups"]
            number = torch.arange(len(groups)).repeat_interleave(groups.shape[1])
            within[source] = pairwise_distance(groups.flatten(0, 1), number)
        prompts = len(next(iter(within.values())))
        card = {"prompts": prompts, "images": prompts * measure.group, "images_a_prompt": measure.group}
        out = [self._entry("diversity", FREE, card) | self._means(within, torch.arange(prompts))]
        if "features" in self.reference:
            reference = self.reference["features"]
            recall = {
                name: recall_hits(known["features"], reference, NEIGHBOURS) for name, known in self.scores.items()
            }
            entry = self._entry("recall", FREE, {"neighbours": NEIGHBOURS, "references": len(reference)})
            out.append(entry | self._means(recall, torch.arange(len(reference))))
        return out

    def _denoising(self) -> list[dict[str, Any]]:
        """The supervised loss: one number a model, without an interval; none without captioned images."""
        if not self.parts.judging.referenced:
            return []
        loss = {name: known["denoising_loss"] for name, known in self.sources.items()}
        probe = self.parts.judging.recipe.evaluate.probe
        moved = {
            name: {"value": v - loss[self.first], "images": probe} for name, v in loss.items() if name != self.first
        }
        entry = self._entry("denoising_loss", "held-out captioned images", {"images": probe})
        return [entry | {"values": {n: {"value": v, "images": probe} for n, v in loss.items()}, "differences": moved}]

    # -- cards ---------------------------------------------------------------------------------------------------

    def _entry(self, name: str, protocol: str, card: Mapping[str, Any]) -> dict[str, Any]:
        recipe, measure = self.parts.judging.recipe, self.parts.judging.measure
        settings, shape = recipe.evaluate, self.scores[self.first]["shown/free"].shape
        common: dict[str, Any] = {
            "metric": f"grpaint {importlib.metadata.version('grpaint')}",
            "images": len(self.parts.prompts),
            "resolution": f"{shape[-1]}x{shape[-2]}",
            "sampler": dump(settings.sampler),
            "steps": settings.steps,
            "guidance": settings.guidance,
            "tuned_share": settings.tuned_share,
            "seed": settings.seed,
        }
        if protocol == RECONSTRUCTION:
            common["strength"] = measure.strength
        if name in ("fid", "kid", "diversity", "recall") and measure.features:
            common["features"] = measure.features.card()
        better = "lower" if name in LOWER else None if name.startswith("image/") else "higher"
        found = {"measure": name, "protocol": protocol, "better": better, "card": common | dict(card)}
        return found | ({"stands_for": STANDS_FOR[name]} if name in STANDS_FOR else {})

    def _own_card(self, name: str) -> dict[str, Any]:
        """What a measure says of itself: a reward its settings and weights, a library its version."""
        if name in PIXELS:
            return {"metric": f"{PIXELS[name]} {importlib.metadata.version(PIXELS[name])}"}
        judging = self.parts.judging
        reward = (judging.rewards(referenced=True) | judging.rewards(referenced=False)).get(name)
        if reward is None:
            return {}
        own = getattr(reward, "card", None)
        weights = {"weights": file_hash(SHIPPED)} if isinstance(reward, SceneScorer | SceneDistance) else {}
        return {"reward": described(reward)} | weights | (own() if callable(own) else {})

    # -- hacking -------------------------------------------------------------------------------------------------

    def hacking(self) -> dict[str, Any]:
        """The alarm of reward hacking, by source, where one is raised against the first."""
        watch = getattr(self.parts.judging.recipe, "watch", Watch())
        silent = [f"reward/{n}" for n, r in getattr(self.parts.judging.recipe, "rewards", {}).items() if not r.weight]
        asked = self.parts.judging.measure.rewards
        silent += [
            n for n, r in asked.items() if not isinstance(r, SceneCleanliness)
        ]  # background has a rule of its own
        lines = {name: self._line(name) for name in self.sources}
        found = {name: hacking_alarm(lines[self.first], line, watch, silent) for name, line in lines.items()}
        return {name: alarm for name, alarm in found.items() if alarm}

    def _line(self, source: str) -> dict[str, Any]:
        """A source's scores as an evaluation of a run has them."""
        scores = {key.removeprefix("free/"): v for key, v in self.scores[source].items() if key.startswith("free/")}
        line: dict[str, Any] = {name: values.double().mean().item() for name, values in scores.items()}
        line |= {f"{name}_by_prompt": values.tolist() for name, values in scores.items()}
        known = self.sources[source]
        line |= {"denoising_loss": known["denoising_loss"]} if "denoising_loss" in known else {}
        return line | {"score": self.parts.judging.recipe.data.score}

    def result(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "protocols": [FREE, RECONSTRUCTION] if self.parts.judging.referenced else [FREE],
            "prompts": len(self.parts.prompts),
            "strength": self.parts.judging.measure.strength,
            "first": self.first,
            "sources": {name: dict(known) for name, known in self.sources.items()},
            "measures": self.measures(),
            "hacking": self.hacking(),
        }
