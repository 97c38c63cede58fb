"""How well the text in an image can be read: an OCR engine in a worker process, the scoring here."""

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
from grpaint.rewards.elsewhere.worker import Hosted, check_target

ENGINES = Path(__file__).with_name("engines.py")
QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d')


def wanted(prompt: Prompt) -> str:
    """The text that an image should show: metadata ``text``, or what the prompt has in double quotes.

    Raises:
        ValueError: where there is neither.
    """
    told = prompt.metadata.get("text")
    if isinstance(told, str) and told.strip():
        return told
    parts = [straight or curly for straight, curly in QUOTED.findall(prompt.text)]
    if not parts:
        raise ValueError(f"the prompt '{prompt.text}' names no text: put it in double quotes, or give metadata.text")
    return " ".join(parts)


def normal(text: str) -> str:
    """Case, blanks and compatibility forms (full width, ligatures) set aside."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def legibility(read: str, target: str, measure: Literal["exact", "edit"]) -> float:
    """1 where what was read is the target; by "edit" distance / length less, and not below 0.

    Unlike Flow-GRPO's OCR reward, a target amid other letters is not full marks.
    """
    read, target = normal(read), normal(target)
    if measure == "exact":
        return float(read == target)
    return 1 - min(distance(read, target) / max(len(target), 1), 1)


@dataclass(kw_only=True)
class Ocr(Hosted):
    """Legibility of the text that a prompt asks for (in double quotes, or metadata ``text``), in [0, 1].

    ``engine`` is installed under ``python``: "tesseract", "easyocr", "paddleocr", or a ``text_of(image)`` of yours as
    file.py:function. ``measure``: "exact", or "edit", 1 - edit distance / length.
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
        targets = [wanted(prompt) for prompt in prompts]
        read = self.values(images, prompts)
        for text in read:
            if not isinstance(text, str):
                raise RewardError(f"its engine gave {text!r:.40} where a text is wanted")
        pairs = zip(read, targets, strict=True)
        return torch.tensor([legibility(text, target, self.measure) for text, target in pairs])
