"""How the answer of a vision-language model to a question about an image becomes a score."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from grpaint.core.policy import Prompt

MOST_ANSWERS = 20  # words whose probability is read: endpoints tell no more of a token

_NUMBER = re.compile(
    r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?:,(?=\d))?", re.ASCII | re.IGNORECASE
)  # 4, is half of 4,5


@dataclass(frozen=True, kw_only=True)
class Readout:
    """A question and what is read of its answer; {prompt} in ``question`` is the prompt's text.

    - ``readout`` "probability": the sum of the values in ``answers`` (a word: its value) times the probability of each
      word as the answer's first token. "expectation": the same, with probabilities that sum to 1 over these words.
    - "number": the first number after the last ``marker`` in the answer's text, within ``low`` .. ``high``; at most
      ``max_tokens`` are answered.
    - The score is (what was read - ``mean``) / ``spread``, as some scorers publish their mean and standard deviation.
    """

    question: str
    readout: Literal["probability", "expectation", "number"] = "probability"
    answers: dict[str, float] = field(default_factory=lambda: {"Yes": 1.0})
    marker: str = ""
    low: float = 0.0
    high: float = 10.0
    max_tokens: int = 512
    mean: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question:
            raise ValueError("question must contain {prompt}, which the prompt's text replaces")
        if not 0 < len(self.answers) <= MOST_ANSWERS:
            raise ValueError(f"answers must have 1 to {MOST_ANSWERS} words, got {len(self.answers)}")
        if self.readout == "expectation" and len(self.answers) < 2:
            raise ValueError('answers must have two or more words, between which readout = "expectation" weighs')
        if self.spread <= 0 or self.max_tokens < 1 or self.low >= self.high:
            raise ValueError("spread and max_tokens must be positive, and low less than high")

    def text(self, prompt: Prompt) -> str:
        """Return the question about an image of a prompt."""
        return self.question.replace("{prompt}", prompt.text)

    def of_probabilities(self, probabilities: Mapping[str, float]) -> float:
        """Return the score for the probability of each word in ``answers``; words that are not given have none.

        Raises:
            ValueError: an expectation over words none of which is likely enough to be told.
        """
        weighted = sum(value * probabilities.get(word, 0.0) for word, value in self.answers.items())
        if self.readout == "expectation":
            total = sum(probabilities.get(word, 0.0) for word in self.answers)
            if not total:
                raise ValueError(f"none of {', '.join(self.answers)} is among the likely first words of its answer")
            weighted /= total
        return (weighted - self.mean) / self.spread

    def of_text(self, text: str) -> float:
        """Return the score for an answer's text.

        Raises:
            ValueError: there is no number in it after the marker, or it is out of range.
        """
        rest = text.rpartition(self.marker)[2] if self.marker else text
        number = _NUMBER.search(rest) if self.marker in text else None
        if number is None or number[0].endswith(",") or not self.low <= float(number[0]) <= self.high:
            after = f' after "{self.marker}"' if self.marker else ""
            raise ValueError(f"instead of a number from {self.low:g} to {self.high:g}{after}")
        return (float(number[0]) - self.mean) / self.spread
