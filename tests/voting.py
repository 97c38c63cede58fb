"""Voters without a hand: some vote straight into the file of a run, others drive the page in a browser."""

import contextlib
import io
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from grpaint.core.errors import ConfigError
from grpaint.storage.votes import VoteFile, VoteRefused

REDNESS = """images => images.map(image => {
  const canvas = Object.assign(document.createElement("canvas"), {width: image.naturalWidth, height: image.naturalHeight});
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  let red = 0;
  for (let at = 0; at < data.length; at += 4) red += 2 * data[at] - data[at + 1] - data[at + 2];
  return red;
})"""


def redness(png: bytes) -> float:
    """How much more red than green and blue a PNG is."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
    return float((2 * pixels[..., 0] - pixels[..., 1] - pixels[..., 2]).sum())


@contextlib.contextmanager
def voting(file: Path, names: Sequence[str], until: int = 10**9) -> Iterator[list[tuple[str, str]]]:
    """Within the block these voters rank by redness, in a thread, at most ``until`` times; gives (voter, key) of each."""
    cast: list[tuple[str, str]] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            with contextlib.suppress(ConfigError), VoteFile(file) as votes:  # it is made when the run begins
                for voter in votes.enrol(names):
                    while len(cast) < until and (question := votes.next_question(voter.number)):
                        scores = [redness(votes.image(question.number, place) or b"") for place in range(question.images)]
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
        if not self.page.locator("#ballot").is_visible():
            return False
        caption = self.page.locator("#standing").inner_text() + self.page.locator("#images img").first.get_attribute("src")
        images = self.page.locator("#images img")
        self.page.wait_for_function("[...document.querySelectorAll('#images img')].every(one => one.naturalWidth)")
        scores = images.evaluate_all(REDNESS)
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=not self.contrary)
        for image in order[:-1]:
            self.page.keyboard.press(str(image + 1))
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("before => !document.querySelector('#ballot').checkVisibility() || before !== "
            "document.querySelector('#standing').innerText + document.querySelector('#images img').getAttribute('src')", arg=caption)  # fmt: skip
        self.count += 1
        return True
