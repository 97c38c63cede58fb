"""Legibility of the text in an image: an OCR engine in a worker process reads it, and this file scores it."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.rewards.elsewhere.worker import WorkerReward, check_target

ENGINES = Path(__file__).parent / "elsewhere/engines.py"
QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d')


def target_text(prompt: Prompt) -> str:
    """The text that an image should show: metadata ``text``, or else the parts of the prompt in double quotes.

    Raises:
        ValueError: if the prompt has neither.
    """
    text = prompt.metadata.get("text")
    is_caption = text == prompt.text and QUOTED.search(
        prompt.text
    )  # of captioned images ``text`` is the caption column
    if isinstance(text, str) and text.strip() and not is_caption:
        return text
    parts = [straight or curly for straight, curly in QUOTED.findall(prompt.text)]
    if not parts:
        raise ValueError(f"the prompt '{prompt.text}' names no text: put it in double quotes, or give metadata.text")
    return " ".join(parts)


def normalised(text: str) -> str:
    """The text in lower case, without blanks, full-width letters and ligatures resolved (NFKC)."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def distance(one: str, other: str) -> int:
    """Levenshtein distance: the least number of insertions, deletions and replacements."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def legibility(read: str, target: str, measure: Literal["exact", "edit"]) -> float:
    """1 if the text that was read is the target. "edit" subtracts edit distance / target length, down to 0.

    Unlike in Flow-GRPO's OCR reward, a target among other letters does not score 1.
    """
    read, target = normalised(read), normalised(target)
    if measure == "exact":
        return float(read == target)
    return 1 - min(distance(read, target) / max(len(target), 1), 1)


@dataclass(kw_only=True)
class Ocr(WorkerReward):
    """Legibility, in [0, 1], of the text that a prompt puts in double quotes or in its metadata ``text``.

    ``engine`` must be installed for the interpreter ``python``: "tesseract", "easyocr", "paddleocr", or a function
    ``text_of(image) -> str`` of your own as file.py:function. ``measure``: "exact", or "edit", which is
    1 - edit distance / length.
    """

    engine: str = "tesseract"
    measure: Literal["exact", "edit"] = "edit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ("tesseract", "easyocr", "paddleocr"):
            check_target("engine", self.engine)

    def target(self) -> str:
        return self.engine if ":" in self.engine else f"{ENGINES}:{self.engine}"

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        targets = [target_text(prompt) for prompt in prompts]
        texts = self.values(images, prompts)
        for text in texts:
            if not isinstance(text, str):
                raise RewardError(f"its engine returned {text!r:.40} instead of a text")
        pairs = zip(texts, targets, strict=True)
        return torch.tensor([legibility(text, target, self.measure) for text, target in pairs])
