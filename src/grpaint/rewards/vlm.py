"""A vision-language model as reward, behind any endpoint with OpenAI's chat completions."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.core.text import one_line
from grpaint.images.encoding import eight_bit_picture, png_data_url
from grpaint.rewards.chat import Chat, answer_text, plain
from grpaint.rewards.elsewhere.client import Failed, bearer

GRADE = (
    "How well does this image show the following, and how good does it look? Answer with one number from 0 (not at "
    "all) to 10 (perfectly) and nothing else.\n{prompt}"
)
CHOICE = (
    "Two images, A and then B, were made for the following text. Which shows it better and looks better? Answer with "
    "A, B or tie, and nothing else.\n{prompt}"
)
CHOICE_VALUES = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass
class VlmJudge(Chat):
    """A vision-language model grades each image from 0 to 10, or compares the images of a prompt in pairs.

    "pairwise" is the share of comparisons won, where a tie counts half: each image is compared with the next
    ``opponents`` images of its group (in a ring; with all others if there are fewer), in both orders, since models
    favour one position. ``question`` replaces the built-in one; {prompt} is the prompt's text. An answer must be a
    number, also as 8/10, or A, B or tie, and nothing else, apart from thoughts in <think> before it.
    """

    measure: Literal["pointwise", "pairwise"] = "pointwise"
    question: str | None = None
    opponents: int = 3
    max_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("opponents", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.question is not None and "{prompt}" not in self.question:
            raise ValueError("question must contain {prompt}, which the prompt's text replaces")

    @property
    def needs_group(self) -> bool:
        """Whether images are compared with others of the same prompt."""
        return self.measure == "pairwise"

    def start(self) -> list[str]:
        """Check that the token is set; the endpoint itself is first used when images are scored."""
        bearer(self.token_env)
        return [f"{self.model} at {self.url} judges"]

    def stop(self) -> None:
        """Do nothing: no connection stays open between questions."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        pictures = [png_data_url(eight_bit_picture(image)) for image in images]
        if self.measure == "pointwise":
            texts = [prompt.text for prompt in prompts]
            calls = [partial(self._judge, GRADE, text, [p], _grade) for text, p in zip(texts, pictures, strict=True)]
            return torch.tensor(self.ask_all(calls))
        pairs = [pair for group in group_rows(prompts) for pair in comparisons(group, self.opponents)]
        compare = partial(self._judge, CHOICE, read=_choice)
        verdicts = self.ask_all([partial(compare, prompts[a].text, [pictures[a], pictures[b]]) for a, b in pairs])
        wins, count = torch.zeros(len(images)), torch.zeros(len(images))
        for (a, b), verdict in zip(pairs, verdicts, strict=True):
            wins[a] += verdict
            wins[b] += 1 - verdict
            count[[a, b]] += 1
        return wins / count

    def _judge(self, default: str, text: str, pictures: Sequence[str], read: Callable[[str], float]) -> float:
        """Ask one question about pictures (data URLs); ``read`` converts the text of the answer."""
        question = (self.question or default).replace("{prompt}", text)
        fields = {"temperature": 0, "max_tokens": self.max_tokens}
        return self.ask(question, pictures, fields, lambda choice: read(answer_text(choice)))


def group_rows(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The row numbers of each prompt text, in order of first appearance.

    Raises:
        RewardError: if a prompt has a single row, which cannot be compared.
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt.text, []).append(row)
    for text, members in rows.items():
        if len(members) < 2:
            raise RewardError(f'pairwise judgement needs two or more images a prompt, and "{text}" has one')
    return list(rows.values())


def comparisons(group: Sequence[int], opponents: int) -> list[tuple[int, int]]:
    """The pairs of rows to compare, in both orders: each row with the next ``opponents`` rows in a ring."""
    size = len(group)
    pairs: dict[tuple[int, int], None] = {}  # a set in order of insertion
    for ahead in range(1, min(opponents, size - 1) + 1):
        for place in range(size):
            one, other = group[place], group[(place + ahead) % size]
            pairs |= {(one, other): None, (other, one): None}
    return list(pairs)


def _grade(text: str) -> float:
    grade = re.fullmatch(r"(10(?:\.0+)?|\d(?:\.\d+)?)(?:\s*/\s*10)?", plain(text), re.ASCII)
    if not grade:
        raise Failed(f'it answered "{one_line(text, 60)}" instead of a number from 0 to 10')
    return float(grade[1])


def _choice(text: str) -> float:
    word = plain(text).lower()
    if word not in CHOICE_VALUES:
        raise Failed(f'it answered "{one_line(text, 60)}" instead of A, B or tie')
    return CHOICE_VALUES[word]
