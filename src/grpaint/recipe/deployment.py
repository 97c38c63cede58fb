"""``[deploy]``: how the trained model will be used, by which it is judged beside the sampler of ``[evaluate]``."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from grpaint.core.bounds import check_range
from grpaint.core.errors import ConfigError
from grpaint.core.path import TRAIN_STEPS
from grpaint.core.step import Ode, Sampler
from grpaint.recipe.pieces import ModelSpec
from grpaint.recipe.settings import Evaluation
from grpaint.rollout.plan import check_sampler
from grpaint.rollout.solver import Tail


@dataclass(frozen=True)
class Deployment:
    """``[deploy]``: the trained model draws in ``steps`` steps of ``sampler``, with the frozen adapters ``frozen``.

    ``order`` 2 takes the steps with the multistep solver of ``plan.tail``; its sampler must be free of noise.
    ``guidance`` applies as that of ``[evaluate]`` does. ``frozen``: names of ``[[model.frozen]]``; all of them if
    unset, and none with an empty list.
    """

    steps: int
    sampler: Sampler = field(default_factory=Ode)
    order: Literal[1, 2] = 1
    guidance: float = 1.0
    frozen: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_range(self, 1, TRAIN_STEPS, "steps")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must not be negative, got {self.guidance}")

    def check(self, model: ModelSpec) -> None:
        """Check that a model can be used so, before any weights are opened.

        Raises:
            ValueError: the sampler or its steps do not suit the model's path, its guidance is distilled, or it has no
                frozen adapter of a name.
        """
        grid = model.path.grid(self.steps)
        check_sampler(self.sampler, grid, "sampler")
        if self.order == 2 and any(self.sampler(here, there)[1] for here, there in pairwise(grid) if there.sigma):
            raise ValueError('order = 2: its solver takes steps without noise; set sampler = { kind = "ode" }')
        if self.guidance != 1 and getattr(model, "guided_by", "") == "distilled":
            raise ValueError(
                f"guidance = {self.guidance:g}: this model's guidance is distilled into it; leave it out, and set "
                "model.guidance"
            )
        names = frozen_names(model)
        for name in self.frozen or ():
            if name not in names:
                raise ValueError(
                    f'frozen = "{name:.60}": no such adapter in [[model.frozen]]. There are: '
                    f"{', '.join(names) or 'none'}"
                )

    def evaluation(self, evaluate: Evaluation, model: ModelSpec) -> "DeployedEvaluation":
        """Return the settings that judge the deployed model on the prompts and noise of ``[evaluate]``."""
        return DeployedEvaluation(
            **_fields(evaluate)
            | {"steps": self.steps, "sampler": self.sampler, "guidance": self.guidance, "tuned_share": 1.0},
            order=self.order,
            frozen=frozen_names(model) if self.frozen is None else self.frozen,
        )


@dataclass(frozen=True)
class DeployedEvaluation(Evaluation):
    """``[evaluate]`` with the sampler, steps and guidance of ``[deploy]``, and the names of frozen adapters."""

    order: Literal[1, 2] = 1
    frozen: tuple[str, ...] = ()

    @property
    def tail(self) -> Tail | None:
        return Tail(1.0, self.order) if self.order > 1 else None

    @property
    def adapters(self) -> tuple[str, ...]:
        return self.frozen

    @property
    def facts(self) -> dict[str, Any]:
        return super().facts | {"order": self.order, "frozen": list(self.frozen)}


class Deployable:
    """The tables of a recipe that say how its model draws."""

    model: ModelSpec
    evaluate: Evaluation
    deploy: Deployment | None

    @property
    def deployed(self) -> DeployedEvaluation | None:
        """The settings that judge the model as it will be used, if there is ``[deploy]``."""
        return self.deploy.evaluation(self.evaluate, self.model) if self.deploy else None

    @property
    def drawing(self) -> Evaluation:
        """The settings by which pictures are drawn: those of ``[deploy]``, or else those of ``[evaluate]``."""
        return self.deployed or self.evaluate


def frozen_names(model: ModelSpec) -> tuple[str, ...]:
    """Return the names of a model's frozen adapters."""
    return tuple(adapter.name for adapter in getattr(model, "frozen", ()))


def in_training(model: ModelSpec) -> tuple[str, ...]:
    """Return the names of the frozen adapters that are on in training."""
    return tuple(adapter.name for adapter in getattr(model, "frozen", ()) if adapter.training)


def with_frozen(settings: Evaluation, names: tuple[str, ...], order: Literal[1, 2] | None = None) -> DeployedEvaluation:
    """Return the same settings with other frozen adapters, and with another ``order`` if it is given."""
    values = {"order": 1} | _fields(settings) | {"frozen": names}
    return DeployedEvaluation(**values | ({"order": order} if order else {}))


def remaining(names: tuple[str, ...], left_out: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the frozen adapters that stay on when those in ``left_out`` are left out.

    Raises:
        ConfigError: one of these is not on.
    """
    for name in left_out:
        if name not in names:
            raise ConfigError(
                f"--without-frozen {name}: no such frozen adapter is on. There are: {', '.join(names) or 'none'}."
            )
    return tuple(name for name in names if name not in left_out)


def _fields(settings: Evaluation) -> dict[str, Any]:
    return {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}
