"""Predict a recipe's seconds by timing a short run of its own loop on this machine."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from grpaint.commands.estimate.forecast import Forecast
from grpaint.commands.estimate.rehearsal import with_stand_in_rewards
from grpaint.core.runtime import resolve
from grpaint.learn.external_rewards import connect_rewards
from grpaint.loops import sft, train
from grpaint.recipe.config import Recipe, SftRecipe
from grpaint.recipe.costs import costs
from grpaint.recipe.pieces import Model
from grpaint.run.unsaved import UnsavedLoop

PROMPTS, IMAGES = 2, 8  # of an iteration that is timed: prompts of RL, images of SFT


@dataclass(frozen=True)
class Times:
    """Seconds: by phase, of an iteration, and of the whole run with judging."""

    phases: dict[str, float]
    iteration: float
    whole: float


class TimedLoop(UnsavedLoop):
    """Runs two iterations, the first as warm-up, and records seconds and model evaluations of the second by phase.

    Rewards that are computed beside sampling count only as far as the loop waits for them.
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
        evaluations = self.policy.meter.counts["training"] - before
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start
        self.evaluations[name] = self.evaluations.get(name, 0) + evaluations

    def _now(self) -> float:
        if self.policy.runtime.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def calibrate(forecast: Forecast) -> Times:
    """Load the weights, time two iterations of a few prompts, and extrapolate by model evaluations.

    The reward phase is extrapolated by images. Rewards are computed, but their scores are replaced, so that every row
    is trained on.
    """
    recipe = forecast.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    small: Any = with_stand_in_rewards(recipe, call=True)
    if isinstance(small, SftRecipe):
        share = recipe.train.batch / (rows := min(IMAGES, small.train.batch))  # type: ignore[union-attr]
        small = dataclasses.replace(small, train=dataclasses.replace(small.train, batch=rows))
    else:
        least = math.ceil(small.train.updates / small.train.group_size)
        prompts = min(small.train.prompts, max(PROMPTS, least))
        share = small.train.prompts / prompts
        parts = min(small.train.parts, prompts)
        small = dataclasses.replace(small, train=dataclasses.replace(small.train, prompts=prompts, parts=parts))
    loop = TimedLoop(small, small.model.load(resolve(recipe.device, recipe.precision)))
    if isinstance(recipe, SftRecipe):
        sft(small, loop)
    else:
        with connect_rewards(recipe.reward_set().rewards, lambda _: None):
            train(small, loop)
    return _extrapolate(forecast, loop, share)


def _extrapolate(forecast: Forecast, loop: TimedLoop, share: float) -> Times:
    """Scale the timed iteration up by ``share``: images of a full iteration divided by the images timed."""
    whole = costs(forecast.recipe)
    phases = {
        name: seconds / loop.evaluations[name] * whole[f"evaluations_{name}"] if loop.evaluations[name] else
        seconds * share
        for name, seconds in loop.seconds.items()
    }  # fmt: skip
    iteration = sum(phases.values())
    first = next(iter(loop.seconds))
    rate = loop.seconds[first] / loop.evaluations[first]
    each, every, judging = forecast.evaluations
    return Times(phases, iteration, iteration * every / each + rate * judging)
