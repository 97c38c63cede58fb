"""Turn scores into measures: values, differences from the first candidate with intervals, and a card for each."""

import importlib.metadata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grpaint.commands.evaluate.candidates import NEIGHBOURS, STANDS_FOR, piece_settings
from grpaint.commands.evaluate.parts import REFERENCE, EvaluationParts, Tensors
from grpaint.measures.distances import KernelDistance, Moments, frechet_distance, pairwise_distance, recall_hits
from grpaint.measures.features import file_hash
from grpaint.measures.hacking import hacking_alarm
from grpaint.measures.intervals import resample_counts, resampled_mean_interval
from grpaint.measures.score import LOWER_IS_BETTER
from grpaint.rewards.scenes import SceneCleanliness, SceneDistance, SceneScorer
from grpaint.scenes.scorer import SHIPPED

FREE, RECONSTRUCTION, DEPLOYED = "free generation", "reconstruction", "as deployed"
PROTOCOLS = {"free": FREE, "reconstruction": RECONSTRUCTION, "deployed": DEPLOYED}  # by the prefix of their scores
NORMAL_95 = 1.959964
PIXELS = {"ssim": "torchmetrics", "psnr": "torchmetrics"}


@dataclass(frozen=True)
class Assessment:
    """The measures computed from all records of a command; the first candidate is the one to compare with."""

    parts: EvaluationParts
    candidates: Mapping[str, Mapping[str, Any]]  # facts by name, as EvaluationParts.record_candidate returns them

    @cached_property
    def scores(self) -> dict[str, Tensors]:
        """The tensors of each candidate."""
        return {name: self.parts.load(name) for name in self.candidates}

    @cached_property
    def reference(self) -> Tensors:
        """The tensors of the reference images; empty if there are none."""
        return self.parts.load(REFERENCE) if self.parts.judging.referenced else {}

    @property
    def first(self) -> str:
        """The name of the candidate that the others are compared with."""
        return next(iter(self.candidates))

    @cached_property
    def categories(self) -> dict[str, Tensor]:
        """The rows of each category of prompts."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, prompt in enumerate(self.parts.prompts):
            rows[self.parts.judging.recipe.data.category(prompt)].append(row)
        return {name: torch.tensor(index) for name, index in sorted(rows.items())}

    # -- measures ------------------------------------------------------------------------------------------------

    def measures(self) -> list[dict[str, Any]]:
        """Every measure with its protocol, card, values and differences."""
        keys = self.scores[self.first]
        rows = [self._by_image(*key.split("/", 1)) for key in keys if key.partition("/")[0] in PROTOCOLS]
        return [*self._distances(), *self._diversity(), *rows, *self._denoising()]

    def _by_image(self, part: str, name: str) -> dict[str, Any]:
        """A measure of single images: means and paired differences, over all prompts and by category."""
        columns = {candidate: scores[f"{part}/{name}"].double() for candidate, scores in self.scores.items()}
        protocol = PROTOCOLS[part]
        every = torch.arange(len(self.parts.prompts))
        by = {kind: self._means(columns, rows) for kind, rows in self.categories.items()}
        return self._entry(name, protocol, self._own_card(name)) | self._means(columns, every) | {"by_category": by}

    def _means(self, columns: Mapping[str, Tensor], rows: Tensor) -> dict[str, Any]:
        """Means of some rows and paired differences from the first candidate, with bootstrap intervals."""
        draws, base = self.parts.judging.measure.draws, columns[self.first][rows]

        def mean_value(values: Tensor) -> dict[str, Any]:
            mean, ends = values.mean().item(), resampled_mean_interval(values, draws)
            return {"value": mean, "interval": ends, "images": len(values)}

        values = {name: mean_value(column[rows]) for name, column in columns.items()}
        differences = {name: mean_value(column[rows] - base) for name, column in columns.items() if name != self.first}
        return {"values": values, "differences": differences}

    def _distances(self) -> list[dict[str, Any]]:
        """FID and KID; the generated images are resampled for the intervals, with the same draws for all candidates."""
        if "features" not in self.reference:
            return []
        measure, reference = self.parts.judging.measure, self.reference["features"]
        count = len(reference)
        times = resample_counts(count, measure.image_draws)
        moments = Moments.of(reference)
        fid, kid = {}, {}
        for name, scores in self.scores.items():
            features, kernel = scores["features"], KernelDistance(scores["features"], reference)
            resampled = [torch.arange(count).repeat_interleave(row.long()) for row in times]
            fid[name] = torch.tensor(
                [frechet_distance(Moments.of(features[rows]), moments) for rows in (torch.arange(count), *resampled)]
            )
            kid[name] = torch.tensor([kernel(None), *(kernel(row) for row in times)])
        card = {"references": count, "few": measure.features is not None and count <= measure.features.width}
        return [
            self._entry("fid", FREE, card) | self._with_normal_intervals(fid),
            self._entry("kid", FREE, card | {"kernel": "(x y / d + 1)^3, all images"})
            | self._with_normal_intervals(kid),
        ]

    def _with_normal_intervals(self, samples: Mapping[str, Tensor]) -> dict[str, Any]:
        """Values and differences with intervals of 1.96 bootstrap standard deviations on each side.

        ``samples``: by candidate, the value of all images, then those of the resamples. Percentiles of these would be
        biased: a resample repeats images, so its distance lies above that of all images.
        """

        def value_of(column: Tensor) -> dict[str, Any]:
            value, half = column[0].item(), NORMAL_95 * column[1:].std().item()
            return {"value": value, "interval": [value - half, value + half], "images": len(self.parts.prompts)}

        base = samples[self.first]
        differences = {name: value_of(column - base) for name, column in samples.items() if name != self.first}
        return {"values": {name: value_of(column) for name, column in samples.items()}, "differences": differences}

    def _diversity(self) -> list[dict[str, Any]]:
        """The mean feature distance between images of one prompt, and recall over the reference images."""
        measure = self.parts.judging.measure
        if not measure.features:
            return []
        within = {}
        for name, scores in self.scores.items():
            groups = scores["groups"]
            prompt_of = torch.arange(len(groups)).repeat_interleave(groups.shape[1])
            within[name] = pairwise_distance(groups.flatten(0, 1), prompt_of)
        prompts = len(next(iter(within.values())))
        card = {"prompts": prompts, "images": prompts * measure.group, "images_a_prompt": measure.group}
        out = [self._entry("diversity", FREE, card) | self._means(within, torch.arange(prompts))]
        if "features" in self.reference:
            reference = self.reference["features"]
            recall = {
                name: recall_hits(scores["features"], reference, NEIGHBOURS) for name, scores in self.scores.items()
            }
            entry = self._entry("recall", FREE, {"neighbours": NEIGHBOURS, "references": len(reference)})
            out.append(entry | self._means(recall, torch.arange(len(reference))))
        return out

    def _denoising(self) -> list[dict[str, Any]]:
        """The supervised loss: one number per model without an interval; left out if the data has no images."""
        if not self.parts.judging.referenced:
            return []
        loss = {name: facts["denoising_loss"] for name, facts in self.candidates.items()}
        probe = self.parts.judging.recipe.evaluate.probe
        differences = {
            name: {"value": v - loss[self.first], "images": probe} for name, v in loss.items() if name != self.first
        }
        entry = self._entry("denoising_loss", "held-out captioned images", {"images": probe})
        return [
            entry | {"values": {n: {"value": v, "images": probe} for n, v in loss.items()}, "differences": differences}
        ]

    # -- cards ---------------------------------------------------------------------------------------------------

    def _entry(self, name: str, protocol: str, card: Mapping[str, Any]) -> dict[str, Any]:
        """The head of a measure: name, protocol, direction and card, with what all cards have in common."""
        recipe, measure = self.parts.judging.recipe, self.parts.judging.measure
        shape = self.scores[self.first]["shown/free"].shape
        settings = recipe.deployed if protocol == DEPLOYED and recipe.deployed else recipe.evaluate
        common: dict[str, Any] = {
            "metric": f"grpaint {importlib.metadata.version('grpaint')}",
            "images": len(self.parts.prompts),
            "resolution": f"{shape[-1]}x{shape[-2]}",
            **settings.facts,
            "seed": settings.seed,
        }
        if protocol == RECONSTRUCTION:
            common["strength"] = measure.strength
        if name in ("fid", "kid", "diversity", "recall") and measure.features:
            common["features"] = measure.features.card()
        better = "lower" if name in LOWER_IS_BETTER else None if name.startswith("image/") else "higher"
        entry = {"measure": name, "protocol": protocol, "better": better, "card": common | dict(card)}
        return entry | ({"stands_for": STANDS_FOR[name]} if name in STANDS_FOR else {})

    def _own_card(self, name: str) -> dict[str, Any]:
        """The card of one measure: the settings and weights of a reward, or the version of a library."""
        if name in PIXELS:
            return {"metric": f"{PIXELS[name]} {importlib.metadata.version(PIXELS[name])}"}
        judging = self.parts.judging
        reward = (judging.rewards(referenced=True) | judging.rewards(referenced=False)).get(name)
        if reward is None:
            return {}
        own = getattr(reward, "card", None)
        weights = {"weights": file_hash(SHIPPED)} if isinstance(reward, SceneScorer | SceneDistance) else {}
        return {"reward": piece_settings(reward)} | weights | (own() if callable(own) else {})

    # -- hacking -------------------------------------------------------------------------------------------------

    def hacking(self) -> dict[str, Any]:
        """The alarms of reward hacking against the first candidate, by candidate; only those that are raised."""
        watch = self.parts.judging.recipe.watch
        untrained = [f"reward/{n}" for n, r in self.parts.judging.recipe.rewards.items() if not r.weight]
        measured = self.parts.judging.measure.rewards
        untrained += [
            n for n, r in measured.items() if not isinstance(r, SceneCleanliness)
        ]  # background has a rule of its own
        lines = {name: self._evaluation_line(name) for name in self.candidates}
        alarms = {name: hacking_alarm(lines[self.first], line, watch, untrained) for name, line in lines.items()}
        return {name: alarm for name, alarm in alarms.items() if alarm}

    def _evaluation_line(self, candidate: str) -> dict[str, Any]:
        """A candidate's scores in the form of a line of a run's evaluations.jsonl."""
        scores = {key.removeprefix("free/"): v for key, v in self.scores[candidate].items() if key.startswith("free/")}
        line: dict[str, Any] = {name: values.double().mean().item() for name, values in scores.items()}
        line |= {f"{name}_by_prompt": values.tolist() for name, values in scores.items()}
        facts = self.candidates[candidate]
        line |= {"denoising_loss": facts["denoising_loss"]} if "denoising_loss" in facts else {}
        return line | {"score": self.parts.judging.recipe.data.score}

    def result(self) -> dict[str, Any]:
        """Everything as plain values, as evaluation.json has it."""
        judging = self.parts.judging
        protocols = {FREE: True, RECONSTRUCTION: judging.referenced, DEPLOYED: bool(judging.recipe.deploy)}
        return {
            "protocols": [name for name, there in protocols.items() if there],
            "prompts": len(self.parts.prompts),
            "strength": self.parts.judging.measure.strength,
            "first": self.first,
            "sources": {name: dict(facts) for name, facts in self.candidates.items()},
            "measures": self.measures(),
            "hacking": self.hacking(),
        }
