"""The alarm of reward hacking: the held-out reward rises while a measure outside it drifts from the base's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from grpaint.core.bounds import Limit
from grpaint.measures.score import Line, score_name

Direction = Literal["up", "down", "either"]


@dataclass(frozen=True)
class Tolerance:
    """How far a judge, a measure that no reward is made of, may move from its value before training.

    The ratio of the two values must not exceed ``factor`` if "up" is ``worse``, nor fall below 1 / ``factor`` if
    "down" is. ``floor`` is added to both values before the division, so that a value near 0 may double.
    """

    factor: float
    floor: float = 0.0
    worse: Direction = "either"


JUDGES: dict[str, Tolerance] = {
    "image/dark_fraction": Tolerance(2.0, 0.1),
    "image/edge_density": Tolerance(1.5, 0.02),
    "image/colour_entropy": Tolerance(2.0, 0.3),
    "image/saturation": Tolerance(1.5, 0.1),
    "image/grid_energy": Tolerance(2.0, 1e-4, "up"),
    "image/spread": Tolerance(1.5, 0.02, "down"),
    "background": Tolerance(4.0, 0.002, "up"),
    "patch_energy": Tolerance(2.0, 1e-4, "up"),
    "denoising_loss": Tolerance(2.0, 0.0, "up"),
}


@dataclass(frozen=True)
class Watch:
    """``[watch]``: when an evaluation raises the alarm of reward hacking, and whether the run then stops.

    Each evaluation is compared with the first one, prompt by prompt. The alarm needs two things: the weighted reward
    above the base's by ``errors`` standard errors, and a judge that moved by as many standard errors and by more than
    its factor (that of ``JUDGES``, unless ``factors`` has one for it). The denoising loss has no standard error and
    needs the factor alone. A held-out score (the data's own score, if it is no reward, and rewards of weight 0) counts
    as such a judge if it fell by ``errors`` standard errors and by ``effect`` times its spread over prompts.
    """

    errors: Limit = 4.0
    effect: Limit = 0.5
    factors: dict[str, Limit] = field(default_factory=dict)
    stop: bool = False

    def __post_init__(self) -> None:
        for name in ("errors", "effect"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, factor in self.factors.items():
            if name not in JUDGES:
                raise ValueError(f"factors.{name}: no such judge. There are: {', '.join(JUDGES)}")
            if not factor > 1:
                raise ValueError(f"factors.{name} must be above 1, got {factor}")

    def excess_ratio(self, base: Line, line: Line, name: str) -> float | None:
        """The ratio of a judge's value to the base's if it is out of tolerance, else None."""
        judge = JUDGES[name]
        ratio, factor = (line[name] + judge.floor) / (base[name] + judge.floor), self.factors.get(name, judge.factor)
        up, down = judge.worse != "down" and ratio > factor, judge.worse != "up" and ratio < 1 / factor
        return ratio if up or down else None


def hacking_alarm(base: Line, line: Line, watch: Watch, held_out: Sequence[str] = ()) -> dict[str, Any] | None:
    """The alarm that an evaluation raises, or None: ``reward``, its rise, and ``judges``, those that moved too far.

    ``base`` is the evaluation before training. ``held_out`` names scores that the training reward is not made of.
    """
    rise = _standard_errors(base, line, "reward")
    if rise is None or rise < watch.errors:
        return None
    names = [name for name in JUDGES if name in base and name in line]
    judges = {name: change for name in names if (change := _drift(base, line, name, watch))}
    scores = [name for name in (score_name(line), *held_out) if name not in ("reward", "denoising_loss")]
    judges |= {name: change for name in scores if (change := _fall(base, line, name, watch))}
    if not judges:
        return None
    return {"reward": _base_and_now(base, line, "reward") | {"errors": round(rise, 1)}, "judges": judges}


def alarm_onset(judged: Sequence[Line], iteration: int) -> dict[str, int]:
    """When the alarm began: ``began``, the iteration of the first alarm, and ``clean``, the last one without.

    ``judged`` are the evaluations so far. If none of them raised the alarm, it begins at ``iteration``.
    """
    first = next((line["hacking"] for line in judged if "hacking" in line), None)
    if first:
        return {"began": first["began"], "clean": first["clean"]}
    return {"began": iteration, "clean": max(line["iteration"] for line in judged)}


def _values_by_prompt(base: Line, line: Line, name: str) -> tuple[Tensor, Tensor] | None:
    """A measure's values by prompt in both evaluations; None if one lacks them or has another number of prompts."""
    before, after = base.get(f"{name}_by_prompt"), line.get(f"{name}_by_prompt")
    if not before or not after or len(before) != len(after):
        return None
    return torch.tensor(before, dtype=torch.float64), torch.tensor(after, dtype=torch.float64)


def _standard_errors(base: Line, line: Line, name: str) -> float | None:
    """The mean paired difference over prompts in units of its standard error; None without values by prompt."""
    pair = _values_by_prompt(base, line, name)
    if pair is None or len(pair[0]) < 2:
        return None
    difference = pair[1] - pair[0]
    mean, error = difference.mean().item(), difference.std().item() / math.sqrt(len(difference))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def _base_and_now(base: Line, line: Line, name: str) -> dict[str, float]:
    return {"base": float(f"{base[name]:.4g}"), "now": float(f"{line[name]:.4g}")}


def _drift(base: Line, line: Line, name: str, watch: Watch) -> dict[str, float] | None:
    """The record of a judge that is out of tolerance, and significantly so if it has values by prompt; else None."""
    ratio, errors = watch.excess_ratio(base, line, name), _standard_errors(base, line, name)
    if ratio is None or (errors is not None and abs(errors) < watch.errors):
        return None
    significance = {} if errors is None else {"errors": round(errors, 1)}
    return _base_and_now(base, line, name) | {"ratio": round(ratio, 3)} | significance


def _fall(base: Line, line: Line, name: str, watch: Watch) -> dict[str, float] | None:
    """The record of a held-out score that fell significantly and far enough; else None."""
    errors, pair = _standard_errors(base, line, name), _values_by_prompt(base, line, name)
    if errors is None or pair is None or errors > -watch.errors:
        return None
    spread = pair[0].std().item()
    effect = (pair[1].mean() - pair[0].mean()).item() / spread if spread else -math.inf
    if effect > -watch.effect:
        return None
    return _base_and_now(base, line, name) | {"effect": round(effect, 2), "errors": round(errors, 1)}


def alarm_text(alarm: Mapping[str, Any]) -> str:
    """One line about an alarm of :func:`hacking_alarm`: the reward's rise and each judge's change."""
    parts = []
    for name, judge in alarm["judges"].items():
        size = f"x {judge['ratio']:.2f}" if "ratio" in judge else f"{judge['effect']:+.2f} of its spread"
        parts.append(f"{name} {judge['base']:g} -> {judge['now']:g} ({size})")
    reward = alarm["reward"]
    return f"reward {reward['base']:g} -> {reward['now']:g} while {', '.join(parts)}"
