"""Whether a line about an evaluation, read from a file, holds what an evaluation writes."""

import math
from typing import Any

from grpaint.measures.score import Line, score_name


def is_number(value: object, *, finite: bool = False) -> bool:
    """Return whether a value of JSON is a number (true and false are none); ``finite``: neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (not finite or math.isfinite(value))


def unlike_an_evaluation(line: Line) -> str:
    """Return the first key whose value no evaluation writes; empty if there is none."""
    name = score_name(line)
    missing = [key for key in ("iteration", "prompts", "steps", name) if not is_number(line.get(key))]
    return next(iter(missing), "") or next((key for key, value in line.items() if not _fits(key, value, name)), "")


def unlike_a_drawing(line: Line) -> str:
    """Return the first key of a line about held-out pictures whose value no run writes; empty if there is none."""
    count = len(line["captions"]) if isinstance(line.get("captions"), list) else -1
    fitting = {
        "captions": count >= 0 and all(isinstance(text, str) for text in line["captions"]),
        "kinds": _is_list_of(line.get("kinds"), str, count),
        "score": isinstance(line.get("score"), str),
        "scores": isinstance(line.get("scores"), dict)
        and all(_is_list(row) and len(row) == count for row in line["scores"].values()),
    }
    return next((key for key, fits in fitting.items() if not fits), "")


def unlike_a_group(group: Any) -> str:
    """Return the first key of a rollout's group of images whose value no run writes; empty if there is none."""
    if not (isinstance(group, dict) and _is_list(group.get("total"))):
        return "total"
    count, rewards = len(group["total"]), group.get("rewards")
    fitting = {
        "caption": isinstance(group.get("caption"), str),
        "kind": isinstance(group.get("kind"), str),
        "advantage": _is_list(group.get("advantage")) and len(group["advantage"]) == count,
        "rewards": isinstance(rewards, dict) and all(_is_list(row) and len(row) == count for row in rewards.values()),
    }
    return next((key for key, fits in fitting.items() if not fits), "")


def _is_list_of(value: Any, kind: type, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(item, kind) for item in value)


def _fits(key: str, value: Any, score: str) -> bool:
    match key:
        case "score":
            fits = isinstance(value, str)
        case "deploy":
            whole = isinstance(value, dict) and {"frozen", "guidance", "sampler"} <= value.keys()
            fits = whole and not unlike_an_evaluation({"iteration": 0, **value})
        case "frozen":
            fits = isinstance(value, list) and all(isinstance(name, str) for name in value)
        case "sampler":
            fits = isinstance(value, dict)
        case "by_kind":
            fits = isinstance(value, dict) and all(map(_numbers, value.values()))
        case "base_guided":
            fits = value is None or _numbers(value, "guidance", score)
        case "hacking":
            fits = is_alarm(value)
        case _ if key.endswith("_by_prompt"):
            fits = _is_list(value)
        case _ if key.endswith("_interval"):
            fits = _is_list(value) and len(value) == 2
        case _:
            fits = is_number(value)
    return fits


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int, float}  # quick: there are millions


def _numbers(value: Any, *keys: str) -> bool:
    """Return whether ``value`` is an object with a number under each of ``keys``; without keys, under all it has."""
    return isinstance(value, dict) and all(is_number(value.get(key)) for key in keys or value)


def is_alarm(value: Any) -> bool:
    """Return whether a value is an alarm of :func:`~grpaint.measures.hacking.hacking_alarm` with its onset."""
    if not (_numbers(value, "began", "clean") and _numbers(value.get("reward"), "base", "now")):
        return False
    judges = value.get("judges")
    return isinstance(judges, dict) and all(
        _numbers(judge, "base", "now") and _numbers(judge, "ratio" if "ratio" in judge else "effect")
        for judge in judges.values()
    )
