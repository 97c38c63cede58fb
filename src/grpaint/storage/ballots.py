"""What a file of votes holds: questions, voters, and how they ranked images."""

from collections.abc import Sequence
from dataclasses import dataclass


class VoteRefused(Exception):
    """A vote that does not count; the message says why."""


@dataclass(frozen=True)
class Question:
    """A group of images to rank: PNG files in ``images``; a voter picks up to ``choices`` of them, best first."""

    key: str
    caption: str
    images: Sequence[bytes]
    choices: int


@dataclass(frozen=True)
class OpenQuestion:
    """A question as a voter sees it; ``images`` is their number, and ``left`` how many more the voter may answer."""

    number: int
    key: str
    caption: str
    images: int
    choices: int
    left: int


@dataclass(frozen=True)
class Voter:
    """Somebody who votes, and the secret ``token`` of his link."""

    number: int
    name: str
    token: str


@dataclass(frozen=True)
class Ranking:
    """One voter's answer: the places of the images that he picked, best first; empty if he saw no difference."""

    voter: str
    picks: tuple[int, ...]

    def preferences(self, images: int) -> list[tuple[int, int]]:
        """Return the pairs (better, worse) of ``images`` images: each pick is preferred to all that were left then."""
        return [
            (pick, other)
            for count, pick in enumerate(self.picks)
            for other in range(images)
            if other not in self.picks[: count + 1]
        ]
