"""Reward hacking: the reward rises on held-out prompts while a judge that no reward asks leaves the base behind."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grpaint.run.score import score_of

Line = Mapping[str, Any]
Way = Literal["up", "down", "either"]

# What is watched, the value that is added to both sides before they are divided (so that a judge that is almost 0 may
# double), and which way is worse.
JUDGES: dict[str, tuple[float, Way]] = {
    "image/dark_fraction": (0.1, "either"),
    "image/edge_density": (0.05, "either"),
    "image/colour_entropy": (0.3, "either"),
    "image/saturation": (0.1, "either"),
    "image/grid_energy": (1e-4, "up"),
    "image/spread": (0.02, "down"),
    "background": (0.005, "up"),
    "patch_energy": (1e-4, "up"),
}


@dataclass(frozen=True)
class Watch:
    """``[watch]``: when an evaluation raises the alarm of reward hacking, and whether the run then stops.

    Each evaluation is compared with the first, prompt by prompt. The alarm needs the weighted reward above the base's
    by ``errors`` standard errors, and a judge that moved by as many and by more than ``factor``; the denoising loss has
    no errors and needs the factor alone. A held-out score (the data's own, where it is no reward, and rewards of weight
    0) must have fallen by ``effect`` of its spread over prompts instead of by a factor.
    """

    errors: float = 4.0
    factor: float = 2.0
    effect: float = 0.5
    stop: bool = False

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(f"factor must be above 1, got {self.factor}")
        for name in ("errors", "effect"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def hacking(base: Line, line: Line, watch: Watch, held_out: Sequence[str] = ()) -> dict[str, Any] | None:
    """What raises the alarm in an evaluation: the rise of the reward, and the judges that moved; None where nothing.

    ``base`` is the evaluation before training. ``held_out`` names measures that no reward is made of.
    """
    rise = _errors(base, line, "reward")
    if rise is None or rise < watch.errors:
        return None
    moved = {name: found for name in JUDGES if (found := _moved(base, line, name, watch))}
    scores = [name for name in (score_of(line), *held_out) if name not in ("reward", "denoising_loss")]
    moved |= {name: found for name in scores if (found := _fallen(base, line, name, watch))}
    if "denoising_loss" in base and "denoising_loss" in line:
        ratio = line["denoising_loss"] / base["denoising_loss"]
        if ratio > watch.factor:
            moved["denoising_loss"] = _said(base, line, "denoising_loss") | {"ratio": round(ratio, 3)}
    if not moved:
        return None
    return {"reward": _said(base, line, "reward") | {"errors": round(rise, 1)}, "judges": moved}


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
    errors = _errors(base, line, name)
    if errors is None or abs(errors) < watch.errors:
        return None
    floor, way = JUDGES[name]
    ratio = (line[name] + floor) / (base[name] + floor)
    up, down = way != "down" and ratio > watch.factor, way != "up" and ratio < 1 / watch.factor
    return _said(base, line, name) | {"ratio": round(ratio, 3), "errors": round(errors, 1)} if up or down else None


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
