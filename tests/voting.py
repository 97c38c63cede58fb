"""Voters without a hand: some vote straight into the file of a run, others drive the page in a browser."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from grpaint.core.errors import ConfigError
from grpaint.storage.ballots import VoteRefused
from grpaint.storage.votes import VoteFile

REDNESS = """images => images.map(image => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  let red = 0;
  for (let at = 0; at < data.length; at += 4) red += 2 * data[at] - data[at + 1] - data[at + 2];
  return [red, Number(image.src.match(/-(\\d+)\\.png$/)[1])];  // images that are alike: by their place in the group
})"""


def redness(png: bytes) -> float:
    """How much more red than green and blue a PNG is."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
    return float((2 * pixels[..., 0] - pixels[..., 1] - pixels[..., 2]).sum())


@contextlib.contextmanager
def voting(file: Path, names: Sequence[str], until: int = 10**9) -> Iterator[list[tuple[str, str]]]:
    """Let these voters rank by redness in a thread, ``until`` times at most; gives (voter, key) of each vote."""
    cast: list[tuple[str, str]] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with contextlib.suppress(ConfigError), VoteFile(file) as votes:  # it is made when the run begins
                for voter in votes.enrol(names):
                    while len(cast) < until and (question := votes.next_question(voter.number)):
                        scores = [
                            redness(votes.image(question.number, place) or b"") for place in range(question.images)
                        ]
                        order = sorted(range(question.images), key=scores.__getitem__, reverse=True)
                        with contextlib.suppress(VoteRefused):
                            votes.vote(voter.number, question.number, order[: question.choices])
                            cast.append((voter.name, question.key))
            time.sleep(0.05)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield cast
    finally:
        over.set()
        thread.join(30)


class BrowserVoter:
    """Ranks by redness on the page of votes, by mouse and keys; a ``contrary`` one prefers the least red."""

    def __init__(self, page: Page, *, contrary: bool = False) -> None:
        self.page, self.contrary, self.count = page, contrary, 0

    def vote(self) -> bool:
        """Vote on the question that the page shows, if it shows one; return whether it did."""
        if not (question := self._question()):
            return False
        images = self.page.locator("#images img")
        self._until(lambda: images.evaluate_all("images => images.every(one => one.complete && one.naturalWidth)"))
        scores = images.evaluate_all(REDNESS)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=not self.contrary)
        for image in order[:-1]:
            self.page.keyboard.press(str(image + 1))
        self.page.keyboard.press("Enter")
        self._until(lambda: self._question() != question)
        self.count += 1
        return True

    def _question(self) -> str:
        """The address of the first image in question; empty if there is none."""
        shown = self.page.evaluate("document.querySelector('#ballot:not([hidden]) img')?.src ?? ''")
        return str(shown).rpartition("-")[0]

    def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            self.page.wait_for_timeout(10)
