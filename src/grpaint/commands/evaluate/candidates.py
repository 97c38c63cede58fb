"""The models of an evaluation, NAME=RUN-OR-CHECKPOINT, and the recipe by which all of them are judged."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from grpaint.core.errors import ConfigError
from grpaint.core.policy import CaptionedImages, Reward, Weights
from grpaint.images.data import DrawnImages
from grpaint.judge import judging_rewards
from grpaint.learn.node_rewards import Sharing
from grpaint.learn.table import RewardSet
from grpaint.measures.features import ScenesFeatures
from grpaint.measures.likeness import check_installed
from grpaint.parallel.world import World
from grpaint.recipe.build import dump
from grpaint.recipe.deployment import frozen_names
from grpaint.recipe.pieces import Model, sharing
from grpaint.recipe.settings import Measuring
from grpaint.recipe.trust import JudgingRecipe
from grpaint.rewards.scenes import SceneCleanliness, SceneDistance, SceneScorer
from grpaint.rollout.start import Reference
from grpaint.run.opening import load_model
from grpaint.run.saved import SavedModel, find_model
from grpaint.scenes.world import SceneData

NEIGHBOURS = 3  # for recall
STANDS_FOR = {"scenes-scorer": "CLIP-Score", "scenes-cleanliness": "aesthetic", "scenes-distance": "LPIPS"}


@dataclass(frozen=True)
class Candidate:
    """A named model: of a run, a checkpoint or a file, or with ``base`` the weights from which a run began.

    ``trust``: its settings may name code.
    """

    name: str
    source: str
    base: bool = False
    trust: bool = False

    @cached_property
    def saved(self) -> SavedModel:
        """Its weight file and settings, looked for once: a run that trains meanwhile may save a later checkpoint.

        Raises:
            ConfigError, CheckpointError: there is none.
        """
        return find_model(self.source, trust=self.trust)

    def open(self, sets: Sequence[str], world: World) -> tuple[Model, JudgingRecipe]:
        """Load the model, and return it with its recipe.

        Raises:
            ConfigError, CheckpointError: it cannot be read.
        """
        recipe, _ = self.recipe(sets)
        if not self.base:
            return self.saved.open(recipe, world), recipe
        return load_model(recipe, world), recipe

    def recipe(self, sets: Sequence[str]) -> tuple[JudgingRecipe, list[str]]:
        """Read the tables by which it is judged without opening weights, and a line for each reward left out.

        Raises:
            ConfigError: it has no recipe, or ``base`` is set and it is not a run.
        """
        if self.base and self.saved.origin.file.name != "run.toml":
            raise ConfigError(f"{self.source}:base: only a run knows what it began from; name the weight file itself.")
        return self.saved.judging(sets)


def parse_candidates(words: Sequence[str], *, trust: bool = False) -> tuple[Candidate, ...]:
    """Parse ``NAME=SOURCE`` or ``SOURCE`` arguments; ``trust``: their settings may name code.

    ``RUN:base`` is the model that a run began from; ``base`` alone is that of the last argument.

    Raises:
        ConfigError: two have the same name.
    """
    candidates = []
    for word in words:
        name, equals, rest = word.partition("=")
        if not (equals and re.fullmatch(r"[\w.-]+", name)):
            name, rest = "", word
        source, base = rest.removesuffix(":base"), rest.endswith(":base")
        if rest == "base" and word != words[-1]:
            source, base = source_of(words[-1]), True
        candidates.append(Candidate(name or ("base" if base else Path(source).stem), source, base, trust))
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name}: two sources of one name; write NAME=RUN-OR-CHECKPOINT.")
    return tuple(candidates)


def source_of(word: str) -> str:
    """The run or file that an argument names."""
    name, equals, rest = word.partition("=")
    return (rest if equals and re.fullmatch(r"[\w.-]+", name) else word).removesuffix(":base")


@dataclass(frozen=True)
class Judging:
    """The recipe and measures by which all candidates are judged: those of the last one.

    On scenes, a measure that the recipe does not name has a stand-in from the embedded world.
    """

    recipe: JudgingRecipe
    measure: Measuring

    @classmethod
    def of(cls, recipe: JudgingRecipe) -> "Judging":
        """Judge by a recipe."""
        measure = recipe.measure
        if isinstance(recipe.data, SceneData | DrawnImages):
            stand_ins: dict[str, Reward] = {
                "scenes-scorer": SceneScorer(),
                "scenes-cleanliness": SceneCleanliness(),
                "scenes-distance": SceneDistance(),
            }
            measure = dataclasses.replace(
                measure, features=measure.features or ScenesFeatures(), rewards=stand_ins | measure.rewards
            )
        return cls(recipe, measure)

    @property
    def start(self) -> Reference:
        """The start of reconstructions: the reference image, noised to ``measure.strength``."""
        return Reference(self.measure.strength, 1.0)

    @property
    def referenced(self) -> bool:
        """Whether the data has reference images; without them no measure that needs one is used."""
        return self.recipe.data.captioned

    def held_out(self) -> CaptionedImages:
        """The held-out prompts with their reference images; empty images if the data has none."""
        data, settings = self.recipe.data, self.recipe.evaluate
        if self.referenced:
            return data.held_out_images(settings.prompts, settings.seed)
        return CaptionedImages(data.held_out(settings.prompts, settings.seed), lambda _: torch.empty(0))

    def rewards(self, *, referenced: bool) -> dict[str, Reward]:
        """The rewards of the recipe and of ``[measure]`` by metric name: those that need a reference, or all others."""
        own = judging_rewards(self.recipe)
        every = {f"reward/{name}": reward for name, reward in own.rewards.items()} if own else {}
        every |= self.measure.rewards
        alone = {name: r for name, r in every.items() if not getattr(r, "needs_group", False)}
        return {name: r for name, r in alone.items() if getattr(r, "needs_reference", False) == referenced}

    def reward_set(self, *, referenced: bool) -> RewardSet:
        """The same rewards, with those among them that the processes of a machine share."""
        rewards = self.rewards(referenced=referenced)
        shared = {f"reward/{name}" for name in sharing(self.recipe.rewards).names}
        return RewardSet(rewards, {}, Sharing(frozenset(shared & rewards.keys())))

    def check(self, candidates: Sequence[Candidate], sets: Sequence[str]) -> None:
        """Refuse models that cannot be judged together, before any weight is opened.

        Raises:
            ConfigError: sample shapes differ, a number of steps or a strength does not fit a model, or a measure needs
                references that the data lacks.
        """
        shape = self.recipe.model.sample_shape
        for candidate in candidates:
            model = candidate.recipe(sets)[0].model
            if self.recipe.deploy:
                try:
                    self.recipe.deploy.check(model)
                except ValueError as error:
                    raise ConfigError(f"{candidate.name}: deploy.{error}.") from error
                names, others = frozen_names(model), frozen_names(self.recipe.model)
                if self.recipe.deploy.frozen is None and set(names) != set(others):
                    raise ConfigError(
                        f"{candidate.name}: its frozen adapters are {', '.join(names) or 'none'}, "
                        f"{candidates[-1].name}'s {', '.join(others) or 'none'}; name in deploy.frozen those that both "
                        "are judged with, or none of them by []."
                    )
            if model.sample_shape != shape:
                raise ConfigError(
                    f"{candidate.name}: samples of {model.sample_shape}, {candidates[-1].name}'s are {shape}; models "
                    "that are compared need samples of one shape."
                )
            try:
                grid = model.path.grid(self.recipe.evaluate.steps)
            except ValueError as error:
                raise ConfigError(f"evaluate.steps: {error}.") from error
            try:
                self.start.entry_step(grid)
            except ValueError as error:
                raise ConfigError(f"measure.strength: {error}.") from error
        if self.measure.features:
            self.measure.features.card()
        if self.referenced:
            check_installed()
        elif referenced := self.rewards(referenced=True):
            raise ConfigError(
                f"measure.rewards.{next(iter(referenced))} looks at a reference image, and this data has prompts "
                "alone; leave it out."
            )

    def check_references(self, held_out: CaptionedImages, *, few: bool) -> None:
        """Refuse references that are too few or of another size than the model's images, before any weight is opened.

        Raises:
            ConfigError: their size differs, or there are too few for recall or, unless ``few``, for a Frechet distance.
        """
        if not self.referenced:
            return
        high, width = held_out.images(slice(1)).shape[-2:]
        if (high, width) != self.recipe.model.pixels:
            model_size = " x ".join(str(side) for side in reversed(self.recipe.model.pixels))
            raise ConfigError(
                f"the held-out images have {width} x {high} pixels, and the model draws {model_size}: reconstructions "
                "need one size. Set data.resolution to the model's, without buckets, or model.height and model.width."
            )
        features, count, setting = self.measure.features, len(held_out.prompts), self.recipe.evaluate.prompts
        if not features or count > features.width:
            return
        have = f"evaluate.prompts = {count}" if count == setting else f"{count} held-out images, {setting} asked for"
        more = f"--set evaluate.prompts={features.width + 1} or more" if count == setting else "hold out more"
        if count <= NEIGHBOURS:
            raise ConfigError(f"{have}: recall looks at {NEIGHBOURS} neighbours, and needs more images; {more}.")
        if not few:
            raise ConfigError(
                f"{have}: a Frechet distance on {features.width} features needs more images than features; {more}, or "
                "--few."
            )


def weights_hash(policy: Model, weights: Weights) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a weight set: names, shapes and fp32 values."""
    digest = hashlib.sha256()
    with policy.weights.use(weights):
        for name, tensor in policy.weights.module_tensors():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_equal_model(source: str, digest: str, world: World) -> None:
    """Check that every process has opened the same weights; ``digest`` is the hash of this one's.

    Raises:
        ConfigError: some have not, since a run that trains has saved meanwhile, or machines see other disks.
    """
    first, *digests = world.gather_values(digest)
    if others := [str(rank) for rank, other in enumerate(digests, 1) if other != first]:
        raise ConfigError(
            f"{source}: rank {', '.join(others)} opened other weights than rank 0: the run has saved meanwhile, or not "
            "every machine sees the same disk. Name one of its checkpoints."
        )


def piece_settings(piece: Any) -> Any:
    """The class and settings of a piece as plain values, also of a user's own piece."""
    named = piece if hasattr(piece, "__qualname__") else type(piece)
    plain = dump(piece) if dataclasses.is_dataclass(piece) else {}
    return {"kind": f"{named.__module__}:{named.__qualname__}"} | plain
