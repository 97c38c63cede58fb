"""Reward hacking: the reward rises on held-out prompts while a judge that no reward asks leaves the base behind."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from grpaint.measures.score import score_of

Line = Mapping[str, Any]
Way = Literal["up", "down", "either"]


@dataclass(frozen=True)
class Judge:
    """A measure that is watched: by how much it may move, and which ``way`` is worse.

    ``floor`` is added to both sides before they are divided, so that what is almost 0 may double.
    """

    factor: float
    floor: float = 0.0
    way: Way = "either"


JUDGES: dict[str, Judge] = {
    "image/dark_fraction": Judge(2.0, 0.1),
    "image/edge_density": Judge(1.5, 0.02),
    "image/colour_entropy": Judge(2.0, 0.3),
    "image/saturation": Judge(1.5, 0.1),
    "image/grid_energy": Judge(2.0, 1e-4, "up"),
    "image/spread": Judge(1.5, 0.02, "down"),
    "background": Judge(4.0, 0.002, "up"),
    "patch_energy": Judge(2.0, 1e-4, "up"),
    "denoising_loss": Judge(2.0, 0.0, "up"),
}


@dataclass(frozen=True)
class Watch:
    """``[watch]``: when an evaluation raises the alarm of reward hacking, and whether the run then stops.

    Each evaluation is compared with the first, prompt by prompt. The alarm needs the weighted reward above the base's
    by ``errors`` standard errors, and a judge that moved by as many and by more than its factor (``JUDGES``; those of
    ``factors`` instead); the denoising loss has no errors and needs the factor alone. A held-out score (the data's own,
    where it is no reward, and rewards of weight 0) must have fallen by ``effect`` of its spread over prompts.
    """

    errors: float = 4.0
    effect: float = 0.5
    factors: dict[str, float] = field(default_factory=dict)
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

    def past(self, base: Line, line: Line, name: str) -> float | None:
        """The ratio by which a judge moved, where that is further than it may."""
        judge = JUDGES[name]
        ratio, factor = (line[name] + judge.floor) / (base[name] + judge.floor), self.factors.get(name, judge.factor)
        up, down = judge.way != "down" and ratio > factor, judge.way != "up" and ratio < 1 / factor
        return ratio if up or down else None


def hacking(base: Line, line: Line, watch: Watch, held_out: Sequence[str] = ()) -> dict[str, Any] | None:
    """What raises the alarm in an evaluation: the rise of the reward, and the judges that moved; None where nothing.

    ``base`` is the evaluation before training. ``held_out`` names measures that no reward is made of.
    """
    rise = _errors(base, line, "reward")
    if rise is None or rise < watch.errors:
        return None
    there = [name for name in JUDGES if name in base and name in line]
    moved = {name: found for name in there if (found := _moved(base, line, name, watch))}
    scores = [name for name in (score_of(line), *held_out) if name not in ("reward", "denoising_loss")]
    moved |= {name: found for name in scores if (found := _fallen(base, line, name, watch))}
    if not moved:
        return None
    return {"reward": _said(base, line, "reward") | {"errors": round(rise, 1)}, "judges": moved}


def since(judged: Sequence[Line], iteration: int) -> dict[str, int]:
    """The iteration of the first alarm, this one if none of ``judged`` raised it; the last without."""
    first = next((line["hacking"] for line in judged if "hacking" in line), None)
    if first:
        return {"began": first["began"], "clean": first["clean"]}
    return {"began": iteration, "clean": max(line["iteration"] for line in judged)}


def _pair(base: Line, line: Line, name: str) -> tuple[Tensor, Tensor] | None:
    """The values by prompt of a measure in both lines; None where one lacks it or has other prompts."""
    before, after = base.get(f"{name}_by_prompt"), line.get(f"{name}_by_prompt")
    if not before or not after or len(before) != len(after):
        return None
    return torch.tensor(before, dtype=torch.float64), torch.tensor(after, dtype=torch.float64)


def _errors(base: Line, line: Line, name: str) -> float | None:
    """The paired difference in standard errors."""
    pair = _pair(base, line, name)
    if pair is None or len(pair[0]) < 2:
        return None
    difference = pair[1] - pair[0]
    mean, error = difference.mean().item(), difference.std().item() / math.sqrt(len(difference))
    return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0


def _said(base: Line, line: Line, name: str) -> dict[str, float]:
    return {"base": float(f"{base[name]:.4g}"), "now": float(f"{line[name]:.4g}")}


def _moved(base: Line, line: Line, name: str, watch: Watch) -> dict[str, float] | None:
    """What is said of a judge that moved too far: surely, where it has values by prompt."""
    ratio, errors = watch.past(base, line, name), _errors(base, line, name)
    if ratio is None or (errors is not None and abs(errors) < watch.errors):
        return None
    sure = {} if errors is None else {"errors": round(errors, 1)}
    return _said(base, line, name) | {"ratio": round(ratio, 3)} | sure


def _fallen(base: Line, line: Line, name: str, watch: Watch) -> dict[str, float] | None:
    errors, pair = _errors(base, line, name), _pair(base, line, name)
    if errors is None or pair is None or errors > -watch.errors:
        return None
    spread = pair[0].std().item()
    effect = (pair[1].mean() - pair[0].mean()).item() / spread if spread else -math.inf
    if effect > -watch.effect:
        return None
    return _said(base, line, name) | {"effect": round(effect, 2), "errors": round(errors, 1)}


def told(found: Mapping[str, Any]) -> str:
    """An alarm in words."""
    parts = []
    for name, judge in found["judges"].items():
        size = f"x {judge['ratio']:.2f}" if "ratio" in judge else f"{judge['effect']:+.2f} of its spread"
        parts.append(f"{name} {judge['base']:g} -> {judge['now']:g} ({size})")
    reward = found["reward"]
    return f"reward {reward['base']:g} -> {reward['now']:g} while {', '.join(parts)}"
