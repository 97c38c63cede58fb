"""A vision-language model as reward, behind any endpoint with OpenAI's chat completions."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from grpaint.core.errors import RewardError
from grpaint.core.policy import Prompt
from grpaint.core.text import one_line
from grpaint.images.encoding import eight_bit_picture, png_data_url
from grpaint.parallel.background import BackgroundCall
from grpaint.rewards.elsewhere.client import (
    Failed,
    Question,
    ask_with_retries,
    bearer,
    check_url,
    read_object,
)
from grpaint.rewards.elsewhere.remote import check_patience

T = TypeVar("T")
ANSWER_LIMIT = 1 << 20
GRADE = (
    "How well does this image show the following, and how good does it look? Answer with one number from 0 (not at "
    "all) to 10 (perfectly) and nothing else.\n{prompt}"
)
CHOICE = (
    "Two images, A and then B, were made for the following text. Which shows it better and looks better? Answer with "
    "A, B or tie, and nothing else.\n{prompt}"
)
USAGE = ("prompt_tokens", "completion_tokens")
CHOICE_VALUES = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass
class VlmJudge:
    """A vision-language model grades each image from 0 to 10, or compares the images of a prompt in pairs.

    ``url`` is the address without /chat/completions (http://HOST:PORT/v1). "pairwise" is the share of comparisons won,
    where a tie counts half: each image is compared with the next ``opponents`` images of its group (in a ring; with all
    others if there are fewer), in both orders, since models favour one position. ``question`` replaces the built-in
    one; {prompt} is the prompt's text. An answer must be a number, or A, B or tie, and nothing else.
    """

    url: str
    model: str
    measure: Literal["pointwise", "pairwise"] = "pointwise"
    question: str | None = None
    opponents: int = 3
    token_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5
    concurrency: int = 8
    max_tokens: int = 16
    _spent: list[dict[str, int]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        check_patience(self.timeout_s, self.retries, self.backoff_s)
        for name in ("opponents", "concurrency", "max_tokens"):
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

    def spent(self) -> dict[str, int]:
        """The number of questions, and of tokens if the endpoint counts them, since the last call."""
        counts, self._spent = self._spent, []
        return {name: sum(count.get(name, 0) for count in counts) for name in ("questions", *USAGE)}

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        pictures = [png_data_url(eight_bit_picture(image)) for image in images]
        if self.measure == "pointwise":
            texts = [prompt.text for prompt in prompts]
            calls = [partial(self._ask, GRADE, text, [p], _grade) for text, p in zip(texts, pictures, strict=True)]
            return torch.tensor(self._all(calls))
        pairs = [pair for group in group_rows(prompts) for pair in comparisons(group, self.opponents)]
        compare = partial(self._ask, CHOICE)
        verdicts = self._all([partial(compare, prompts[a].text, [pictures[a], pictures[b]], _choice) for a, b in pairs])
        wins, count = torch.zeros(len(images)), torch.zeros(len(images))
        for (a, b), verdict in zip(pairs, verdicts, strict=True):
            wins[a] += verdict
            wins[b] += 1 - verdict
            count[[a, b]] += 1
        return wins / count

    def _all(self, questions: Sequence[Callable[[], T]]) -> list[T]:
        """Call all ``questions``, ``concurrency`` of them at a time; returns the answers in order."""
        answers: dict[int, T] = {}
        lanes = min(self.concurrency, len(questions))
        failures: list[BaseException] = []

        def lane(first: int) -> None:
            for number in range(first, len(questions), lanes):
                if failures:
                    return
                try:
                    answers[number] = questions[number]()
                except BaseException as error:
                    failures.append(error)
                    raise

        errors = [call.error() for call in [BackgroundCall(partial(lane, first)) for first in range(lanes)]]
        for error in errors:
            if error:
                raise error
        return [answers[number] for number in range(len(questions))]

    def _ask(self, default: str, text: str, pictures: Sequence[str], read: Callable[[str], T]) -> T:
        """Ask one question about pictures (data URLs); ``read`` converts the text of the answer."""
        question = (self.question or default).replace("{prompt}", text)
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        content += [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        chat = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        body = json.dumps(chat).encode()

        def ask(url: str) -> T:
            headers = {"Content-Type": "application/json"} | bearer(self.token_env)
            request = Question(f"{url.rstrip('/')}/chat/completions", headers, body, self.timeout_s, ANSWER_LIMIT)
            self._spent.append({"questions": 1})  # counted before it is sent: a failed question may cost money too
            answer = read_object(request.ask())
            self._spent.append(_usage(answer))
            return read(_text(answer))

        return ask_with_retries([self.url], ask, self.retries, self.backoff_s)


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


def _text(answer: Mapping[str, Any]) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise Failed("its answer is not a chat completion") from error
    if not isinstance(text, str):
        raise Failed("its answer contains no text")
    return text


def _usage(answer: Mapping[str, Any]) -> dict[str, int]:
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return {key: counts[key] for key in USAGE if type(counts.get(key)) is int}


def _grade(text: str) -> float:
    if not re.fullmatch(r"\s*(10(\.0+)?|\d(\.\d+)?)\s*", text, re.ASCII):
        raise Failed(f'it answered "{one_line(text, 60)}" instead of a number from 0 to 10')
    return float(text)


def _choice(text: str) -> float:
    word = text.strip().lower()
    if word not in CHOICE_VALUES:
        raise Failed(f'it answered "{one_line(text, 60)}" instead of A, B or tie')
    return CHOICE_VALUES[word]
