"""Seconds, by running a recipe's own loop on this machine for a moment."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from grpaint.commands.estimate.forecast import Forecast
from grpaint.commands.estimate.rehearsal import Unwritten, unrewarded
from grpaint.core.runtime import resolve
from grpaint.learn.external_rewards import connect_rewards
from grpaint.loops import sft, train
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.costs import costs
from grpaint.recipe.pieces import Model

PROMPTS, IMAGES = 2, 8


@dataclass(frozen=True)
class Times:
    """Seconds of an iteration, by phase, and to the end, with judging."""

    phases: dict[str, float]
    iteration: float
    whole: float


class Timed(Unwritten):
    """Two iterations, the first to warm up; seconds and model evaluations of the second, by phase.

    What is scored beside sampling counts as far as the loop waits for it.
    """

    def __init__(self, recipe: Recipe, policy: Model) -> None:
        super().__init__(recipe, policy)
        self.seconds: dict[str, float] = {}
        self.evaluations: dict[str, int] = {}

    def iterations(self) -> Iterator[int]:
        for number in super().iterations():
            self.seconds, self.evaluations = {}, {}
            yield number

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, start = self.policy.meter.counts["training"], self._now()
        yield
        used = self.policy.meter.counts["training"] - before
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start
        self.evaluations[name] = self.evaluations.get(name, 0) + used

    def _now(self) -> float:
        if self.policy.runtime.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def calibrate(said: Forecast) -> Times:
    """Open the weights, run a few prompts for two iterations, and extrapolate by model evaluations.

    The reward phase is extrapolated by images. Rewards are asked, and their scores replaced, so that every row is
    trained on.
    """
    recipe = said.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    small: Any = unrewarded(recipe, ask=True)
    if isinstance(small, SftRecipe):
        share = recipe.train.batch / (rows := min(IMAGES, small.train.batch))  # type: ignore[union-attr]
        small = dataclasses.replace(small, train=dataclasses.replace(small.train, batch=rows))
    else:
        least = math.ceil(small.train.updates / small.train.group_size)
        prompts = min(small.train.prompts, max(PROMPTS, least))
        share = small.train.prompts / prompts
        parts = min(small.train.parts, prompts)
        small = dataclasses.replace(small, train=dataclasses.replace(small.train, prompts=prompts, parts=parts))
    loop = Timed(small, small.model.load(resolve(recipe.device, recipe.precision)))
    if isinstance(recipe, SftRecipe):
        sft(small, loop)
    else:
        with connect_rewards(recipe.reward_set().rewards, lambda _: None):
            train(small, loop)
    return _extrapolated(said, loop, share)


def _extrapolated(said: Forecast, loop: Timed, share: float) -> Times:
    whole = costs(said.recipe)
    phases = {
        name: seconds / loop.evaluations[name] * whole[f"evaluations_{name}"] if loop.evaluations[name] else
        seconds * share
        for name, seconds in loop.seconds.items()
    }  # fmt: skip
    iteration = sum(phases.values())
    first = next(iter(loop.seconds))
    rate = loop.seconds[first] / loop.evaluations[first]
    each, every, judging = said.evaluations
    return Times(phases, iteration, iteration * every / each + rate * judging)
