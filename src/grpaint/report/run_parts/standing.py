"""Where a run stands: a few cards, each a headline and a sentence or two, which need no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from grpaint.measures.hacking import alarm_text
from grpaint.measures.intervals import paired_difference
from grpaint.measures.score import comparable_score, score_name, score_text, score_unit
from grpaint.report.run_record import Line, RunRecord, base_of

Tone = Literal["", "good", "bad", "warn"]

RECENT = 20  # lines from which the time left is estimated
LONGEST_S = 1e9
SILENT_S = 600.0
MISSED = 20  # lines that a running process may be late by, before its silence is told
STATUS: dict[str, tuple[str, Tone]] = {
    "starting": ("Starting", ""),
    "running": ("Running", ""),
    "finished": ("Finished", "good"),
    "failed": ("Failed", "bad"),
    "interrupted": ("Interrupted", "warn"),
}
MEANINGS = {
    "strict": "share of held-out prompts whose picture shows everything that the caption asks for",
    "soft": "mean graded score of the held-out prompts",
    "reward": "weighted reward on the held-out prompts",
    "denoising_loss": "loss on held-out pictures with captions; lower is better",
}


@dataclass(frozen=True)
class Card:
    """A box of the page's first part; ``change`` stands beside the headline, ``tone`` colours it."""

    title: str
    headline: str
    sentences: Sequence[str]
    change: str = ""
    tone: Tone = ""


def standing_cards(record: RunRecord, *, live: bool = False) -> list[Card]:
    """Return the cards, the most important first; those of a ``live`` page do not ask to reload it."""
    cards = [
        _progress(record, live),
        _score("Held-out score", record.evaluations),
        _deployment(record.deployments),
        None if record.supervised else _hacking(record),
        _training(record),
    ]
    return [card for card in cards if card]


def status_label(record: RunRecord) -> tuple[str, Tone]:
    """Return the run's status as a word, and its tone."""
    return STATUS.get(record.facts.get("status", ""), ("Status not known", "warn"))


def spent_s(line: Line) -> float:
    """Return the seconds that an iteration took by its line; scoring that overlaps with sampling counts as its wait."""
    scoring = "time/reward_wait_s" if "time/reward_wait_s" in line else "time/reward_s"
    phases = ("time/rollout_s", scoring, "time/update_s", "time/pictures_s", "time/evaluate_s")
    return sum(_number(line, phase) for phase in phases)


def _number(line: Line, key: str) -> float:
    """Return a number of a line, 0 where it has none."""
    value = line.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def duration(seconds: float) -> str:
    """Return a number of seconds as a person says it."""
    if not seconds < LONGEST_S:
        return "years"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _iteration_s(record: RunRecord) -> float:
    """Return the mean seconds of the last iterations, of as many as lie between two evaluations at least."""
    every = record.settings.get("evaluate", {}).get("every", 0)
    lines = record.metrics[-max(RECENT, every if isinstance(every, int) else 0) :]
    return sum(map(spent_s, lines)) / len(lines) if lines else 0.0


def lateness(record: RunRecord) -> bool:
    """Return whether a run that calls itself running has been silent for so long that it may have been killed."""
    running = record.facts.get("status") in ("starting", "running")
    return running and record.silent_s > max(SILENT_S, MISSED * _iteration_s(record))


def _progress(record: RunRecord, live: bool) -> Card:
    label, tone = status_label(record)
    total, done, pace = record.iterations, record.done, _iteration_s(record)
    headline = f"{done:,} of {total:,} iterations" if total else f"{done:,} iterations"
    sentences = []
    if pace:
        sentences.append(f"{duration(pace)} an iteration, {duration(sum(map(spent_s, record.metrics)))} so far.")
    if record.facts.get("status") in ("starting", "running"):
        if lateness(record):
            tone = "warn"
            sentences.append(
                f"No line has come for {duration(record.silent_s)}: it may have been killed. If so, resume it "
                "(Recipe, below)."
            )
        else:
            left = f"about {duration(pace * (total - done))} left; " if total and pace and done < total else ""
            later = "this page follows it." if live else "reload the page for later numbers."
            sentences.append(f"{left}{later}".capitalize())
    elif record.facts.get("status") in ("failed", "interrupted"):
        reason = record.facts.get("reason")
        sentences.append(f"{label}: {reason}" if isinstance(reason, str) else f"{label} without a reason.")
        sentences.append("It goes on from its last checkpoint with the command under Recipe, below.")
    return Card(label, headline, sentences, tone=tone)


def score_change(base: Line, line: Line) -> tuple[str, Tone, str]:
    """Return how an evaluation's score differs from the base's: as text, its tone, and what it means in words."""
    name = score_name(line)
    before, after = base.get(f"{name}_by_prompt", []), line.get(f"{name}_by_prompt", [])
    points = " points" if score_unit(name) else ""
    if not after or len(before) != len(after):
        if name not in base:
            return "", "", ""
        change = line[name] - base[name]
        better = comparable_score(line) > comparable_score(base)
        return (
            f"{score_text(name, change, sign=True)}{points}",
            "good" if better else "bad" if change else "",
            "The base",
        )
    mean, (low, high) = paired_difference([float(x) for x in before], [float(x) for x in after])
    text = f"{score_text(name, mean, sign=True)}{points}"
    if low == high:
        return text, "", "No prompt has changed from the base" if not mean else "The base"
    ends = f"[{score_text(name, low, sign=True)}, {score_text(name, high, sign=True)}]"
    if low > 0:
        return f"{text} {ends}", "good", "Better than the base"
    if high < 0:
        return f"{text} {ends}", "bad", "Worse than the base"
    return f"{text} {ends}", "", "Not yet distinguishable from the base"


def _deployment(lines: Sequence[Line]) -> Card | None:
    """Describe the score of the model as it will be used, if the run has ``[deploy]``."""
    if not lines:
        return None
    line, card = lines[-1], _score("Score as deployed", lines)
    frozen = f", frozen adapters {', '.join(line['frozen'])}" if line["frozen"] else ""
    sentence = (
        f"With {line['steps']} steps of {line['sampler'].get('kind', 'an own sampler')}, guidance "
        f"{line['guidance']:g}{frozen}; the pictures are drawn so, and the best checkpoint is chosen by it."
    )
    return replace(card, sentences=[sentence, *card.sentences])


def _score(title: str, lines: Sequence[Line]) -> Card:
    if not lines:
        return Card(title, "not yet", ["The first evaluation has not been written."])
    line, base = lines[-1], base_of(lines)
    name = score_name(line)
    sentences = [f"{name.replace('_', ' ').capitalize()}: {MEANINGS.get(name, 'mean over the held-out prompts')}."]
    headline = f"{score_text(name, line[name])}{score_unit(name)}"
    change, words = "", ""
    tone: Tone = ""
    if base and base is not line and score_name(base) == name:
        change, tone, words = score_change(base, line)
        interval = " (95% interval, same prompts and noise)" if "[" in change else ""
        sentences.append(f"{words}, {score_text(name, base[name])}{score_unit(name)}{interval}.")
    elif base is line:
        sentences.append("This is the base, before training.")
    guided = base.get("base_guided") if base else None
    if guided and name in guided:
        at = f"{guided['guidance']:g}"
        sentences.append(f"The base at guidance {at} has {score_text(name, guided[name])}{score_unit(name)}.")
    same = [one for one in lines if score_name(one) == name]
    best = max(same, key=comparable_score)
    if best is not line and comparable_score(best) > comparable_score(line):
        where = f"iteration {best['iteration']}" if best["iteration"] else "the base"
        sentences.append(f"Best so far: {score_text(name, best[name])}{score_unit(name)} at {where}.")
    return Card(f"{title}, iteration {line['iteration']}", headline, sentences, change, tone)


def _hacking(record: RunRecord) -> Card | None:
    alarm = record.facts.get("hacking")
    if not record.evaluations:
        return None
    if not alarm:
        judged = record.base is not None and len(record.evaluations) > 1
        if judged:
            sentence = "No measure outside the reward has passed its limit."
            return Card("Reward hacking", "no alarm", [sentence], tone="good")
        return Card("Reward hacking", "not judged yet", ["Judged from the second evaluation on, against the base."])
    now = "hacking" in record.evaluations[-1]
    best = f"iteration {alarm['best_before']}" if alarm["best_before"] else "the base"
    return Card(
        "Reward hacking",
        f"alarm since iteration {alarm['began']}" if now else f"alarm at iteration {alarm['began']}, not raised now",
        [
            f"{alarm_text(alarm)[0].upper()}{alarm_text(alarm)[1:]}.",
            f"Look at the pictures from iteration {alarm['clean']} on. The best before it is {best}.",
            "Then mend the reward, or hold the model closer to the base: a higher KL penalty, a lower "
            "train.learning_rate. With watch.stop = true a run ends at its alarm.",
        ],
        tone="bad" if now else "warn",
    )


def _training(record: RunRecord) -> Card | None:
    """Describe the last iteration's reward and whether it gave a signal, or the loss of a supervised run."""
    if not record.metrics:
        return None
    first, last = record.metrics[0], record.metrics[-1]
    title, sentences = f"Training, iteration {last['iteration']}", []
    tone: Tone = ""
    if record.supervised:
        loss = last.get("sft/denoising")
        headline = f"loss {loss:.4g}" if isinstance(loss, float) else "no loss"
        if isinstance(loss, float) and isinstance(first.get("sft/denoising"), float):
            sentences.append(
                f"Denoising loss of the batch; {first['sft/denoising']:.4g} at iteration {first['iteration']}."
            )
    else:
        names = [name for name in last if name.startswith("reward/") and name.count("/") == 1]
        headline = ", ".join(f"{name[7:]} {_mean(record.metrics[-RECENT:], name):.3g}" for name in names) or "no reward"
        sentences.append(f"Mean reward of the last {min(RECENT, len(record.metrics))} iterations.")
        flat, groups = last.get("advantage/zero_spread_groups"), record.settings.get("train", {}).get("prompts")
        if isinstance(flat, int) and isinstance(groups, int) and groups:
            sentences.append(f"{flat} of {groups} groups without spread, from which nothing is learned.")
            tone = "warn" if 2 * flat > groups else ""
    for key, what in (
        ("train/nonfinite_updates", "with a gradient that is not finite"),
        ("train/skipped_updates", "skipped"),
    ):
        if count := sum(_number(line, key) for line in record.metrics):
            sentences.append(f"{count:g} updates {what}.")
            tone = "warn" if key == "train/nonfinite_updates" else tone
    return Card(title, headline, sentences, tone=tone)


def _mean(lines: Sequence[Line], name: str) -> float:
    values = [_number(line, name) for line in lines if name in line]
    return sum(values) / len(values) if values else math.nan


def moment(text: Any) -> datetime | None:
    """Return the time that run.json gives, if it is one."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
