"""People as a reward: they rank the images of a prompt on a page, and a run waits for them."""

import hashlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from grpaint.core.bounds import check_range
from grpaint.core.errors import ConfigError, MissingExtra, RewardError, StopRequested
from grpaint.core.policy import Prompt
from grpaint.core.reward import RewardBase
from grpaint.images.encoding import eight_bit, eight_bit_picture, png_bytes
from grpaint.storage.ballots import Question, Ranking
from grpaint.storage.votes import VOTES_FILE, VoteFile

POLL_S = 0.25
MOST_VOTES, MOST_WAIT_S = 1000, 30 * 86_400
PENALTY = 0.5  # of choix: half the squared scores, which is a standard normal prior


@dataclass
class Votes(RewardBase):
    """People rank the images of each prompt, on the page of ``grpaint vote RUN``.

    The run waits until each group has ``votes`` votes, for ``wait_s`` seconds at most; a group without a choice then
    has no score, and is left out. A voter picks up to ``choices`` images of a group, best first; each is preferred to
    all that are left then. A score is an image's strength in the Bradley-Terry model: one is preferred to another with
    odds of exp(the difference of theirs). The strengths are the most likely ones of all votes under a standard normal
    prior, so that an image that always wins has a finite one.

    With ``weight = 0`` nobody is asked about training: people compare the pictures of each evaluation with the base's.
    """

    votes: int = 1
    wait_s: float = 86_400.0
    choices: int = 4
    needs_group: ClassVar[bool] = True
    partial: ClassVar[bool] = True
    _file: VoteFile | None = field(default=None, init=False, repr=False, compare=False)
    _folder: Path | None = field(default=None, init=False, repr=False, compare=False)
    _stopping: Callable[[], int] = field(default=lambda: 0, init=False, repr=False, compare=False)
    _spent: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_range(self, 1, MOST_VOTES, "votes", "choices")
        if not 0 < self.wait_s <= MOST_WAIT_S:
            raise ValueError(f"wait_s must lie in (0, {MOST_WAIT_S}], got {self.wait_s}")

    def check(self) -> None:
        if importlib.util.find_spec("choix") is None:
            raise MissingExtra("a reward of votes", "votes")

    def join_run(self, folder: Path, stopping: Callable[[], int]) -> None:
        """Keep votes in the folder of a run; ``stopping`` gives the signal that asks the run to stop, or 0."""
        self._folder, self._stopping = folder, stopping

    def start(self) -> list[str]:
        """Open the file of votes, and return where to vote.

        Raises:
            RewardError: there is no run, or its file of votes cannot be used.
        """
        if self._folder is None:
            raise RewardError("it asks people on the page of a run, and only training is one; leave it out here.")
        try:
            self._file = VoteFile(self._folder / VOTES_FILE, create=True)
        except ConfigError as error:
            raise RewardError(str(error)) from error
        needed = "1 vote" if self.votes == 1 else f"{self.votes} votes"
        return [f"each group of images waits for {needed}, on the page of: grpaint vote {self._folder}"]

    def stop(self) -> None:
        """Close the file of votes."""
        if self._file:
            self._file.close()
        self._file = None

    def spent(self) -> dict[str, int]:
        """Return how many groups of training were asked about since the last call, and how many votes they had."""
        spent, self._spent = self._spent, {}
        return spent

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        groups = _group_rows(prompts)
        scores = torch.full((len(images),), torch.nan)
        answers = self._answers([self._question(images[rows], prompts[rows[0]].text) for rows in groups])
        for rows, rankings in zip(groups, answers, strict=True):
            if any(ranking.picks for ranking in rankings):
                scores[rows] = torch.tensor(strengths(len(rows), rankings), dtype=scores.dtype)
        votes = sum(len(rankings) for rankings in answers)
        self._spent = {unit: self._spent.get(unit, 0) + n for unit, n in (("groups", len(groups)), ("votes", votes))}
        return scores

    def prefer(self, before: Tensor, after: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return the share of votes for each image of ``after`` against that of ``before``; no difference is a half."""
        pairs = zip(before, after, prompts, strict=True)
        answers = self._answers(
            [self._question(torch.stack([one, other]), prompt.text) for one, other, prompt in pairs]
        )
        shares = [[float(ranking.picks[0]) if ranking.picks else 0.5 for ranking in rankings] for rankings in answers]
        return torch.tensor([sum(values) / len(values) if values else torch.nan for values in shares])

    def _answers(self, questions: Sequence[Question]) -> list[list[Ranking]]:
        """Ask people, wait for them, and return the votes on each question.

        Raises:
            RewardError: there is no run, or its file of votes cannot be used.
            StopRequested: the run is asked to stop.
        """
        if self._file is None:
            self.start()
        assert self._file is not None
        try:
            self._wait(self._file, questions)
            return [self._file.rankings(question.key) for question in questions]
        except ConfigError as error:
            raise RewardError(str(error)) from error

    def _question(self, images: Tensor, caption: str) -> Question:
        levels = eight_bit(images)
        digest = hashlib.sha256(repr((caption, tuple(levels.shape))).encode(errors="backslashreplace"))
        digest.update(levels.cpu().contiguous().numpy().tobytes())
        pictures = [png_bytes(eight_bit_picture(image)) for image in levels]
        return Question(digest.hexdigest()[:32], caption, pictures, min(self.choices, len(images) - 1))

    def _wait(self, file: VoteFile, questions: Sequence[Question]) -> None:
        """Ask, and wait until every question is closed.

        Raises:
            StopRequested: the run is asked to stop.
        """
        remaining, end = file.ask(questions), time.monotonic() + self.wait_s
        while remaining := file.settle(remaining, self.votes if time.monotonic() < end else 0):
            if signal := self._stopping():
                raise StopRequested(signal)
            time.sleep(min(POLL_S, self.wait_s))


def _group_rows(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the row numbers of each prompt, in the order of first appearance.

    Raises:
        RewardError: a prompt has a single row, which cannot be compared.
    """
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(id(prompt), []).append(row)
    if any(len(members) < 2 for members in rows.values()):
        raise RewardError("people compare the images of a prompt, and one has a single image")
    return list(rows.values())


def strengths(images: int, rankings: Sequence[Ranking]) -> list[float]:
    """Return the Bradley-Terry strength of each of ``images`` images by all votes; they sum to 0."""
    import choix

    pairs = [pair for ranking in rankings for pair in ranking.preferences(images)]
    return [float(value) for value in choix.opt_pairwise(images, pairs, alpha=PENALTY, tol=1e-10, max_iter=1000)]
