"""What a run has recorded, as its page needs it: the content of its folder, read and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpaint.measures.score import deciding_line

Line = Mapping[str, Any]


@dataclass(frozen=True)
class DrawnPictures:
    """The held-out pictures of one iteration; every list has an entry for each prompt.

    ``score`` is the name of the score that judges the run, ``scores`` are all by name. ``files`` are paths from the run
    folder; None where the file is missing.
    """

    iteration: int
    captions: Sequence[str]
    kinds: Sequence[str]
    score: str
    scores: Mapping[str, Sequence[float]]
    files: Sequence[str | None]


@dataclass(frozen=True)
class Group:
    """The images of one prompt in a rollout; ``rewards`` are lists by name, with an entry for each image, as files."""

    caption: str
    kind: str
    rewards: Mapping[str, Sequence[float]]
    total: Sequence[float]
    advantage: Sequence[float]
    files: Sequence[str | None]


@dataclass(frozen=True)
class LastRollout:
    """The newest rollout of which pictures were kept: the first of its ``prompts`` groups."""

    iteration: int
    prompts: int
    groups: Sequence[Group]


@dataclass(frozen=True)
class RunRecord:
    """A run folder's content.

    ``path`` is the folder as commands name it, ``facts`` is run.json, ``settings`` is run.toml. ``iterations`` is how
    many the whole run has, estimated where it ends by model evaluations; None if that is not known. ``packaged`` is the
    name of the packaged recipe that the run began from, if any; ``changes`` are the settings that differ from it: key,
    its value, the run's. ``captions`` are the held-out prompts, as far as they are known. ``silent_s`` are the seconds
    since the run wrote its last line. ``notes`` are sentences about what is missing or damaged.
    """

    name: str
    path: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    iterations: int | None = None
    packaged: str | None = None
    changes: Sequence[tuple[str, Any, Any]] = ()
    metrics: Sequence[Line] = ()
    evaluations: Sequence[Line] = ()
    captions: Sequence[str] = ()
    drawings: Sequence[DrawnPictures] = ()
    rollout: LastRollout | None = None
    silent_s: float = 0.0
    notes: Sequence[str] = ()

    @property
    def supervised(self) -> bool:
        """Whether the run is of the supervised stage."""
        return self.settings.get("stage") == "sft"

    @property
    def done(self) -> int:
        """The number of completed iterations."""
        return max((line["iteration"] for line in (*self.metrics[-1:], *self.evaluations[-1:])), default=0)

    @property
    def base(self) -> Line | None:
        """The evaluation before training."""
        return base_of(self.evaluations)

    @property
    def deployments(self) -> Sequence[Line]:
        """The evaluations of the model as ``[deploy]`` uses it; none without that table."""
        return [deciding_line(line) for line in self.evaluations if "deploy" in line]


def base_of(lines: Sequence[Line]) -> Line | None:
    """Return the line before training, if it is there."""
    return lines[0] if lines and lines[0]["iteration"] == 0 else None
