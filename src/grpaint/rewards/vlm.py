"""A vision-language model as judge, over any endpoint that speaks OpenAI's chat completions."""

import base64
import io
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
from grpaint.parallel.background import BackgroundCall
from grpaint.rewards.elsewhere.client import (
    Failed,
    Question,
    ask_with_retries,
    bearer,
    check_url,
    printable,
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
WORTH = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass
class VlmJudge:
    """A vision-language model grades each image from 0 to 10, or compares the images of a prompt in pairs.

    ``url`` ends before /chat/completions (http://HOST:PORT/v1). "pairwise" gives the share of comparisons won, a
    tie half: each image meets the ``opponents`` after it in its group (in a ring; all where there are fewer), in both
    orders, since models favour a place. ``question`` replaces ours; {prompt} is the prompt's text. Answers are read
    strictly: a number, or A, B or tie, and nothing else.
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
            raise ValueError("question must say where the prompt's text goes: {prompt}")

    @property
    def needs_group(self) -> bool:
        """Whether images are compared with others of their prompt."""
        return self.measure == "pairwise"

    def start(self) -> list[str]:
        """See that the token is there; the judge itself is asked first when images are."""
        bearer(self.token_env)
        return [f"{self.model} at {self.url} judges"]

    def stop(self) -> None:
        """Nothing is kept open between questions."""

    def spent(self) -> dict[str, int]:
        """Questions, and tokens where the endpoint counts them, since this was last asked."""
        spent, self._spent = self._spent, []
        return {name: sum(one.get(name, 0) for one in spent) for name in ("questions", *USAGE)}

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        pictures = [_data_url(image) for image in images]
        if self.measure == "pointwise":
            texts = [prompt.text for prompt in prompts]
            grades = [partial(self._ask, GRADE, text, [p], _grade) for text, p in zip(texts, pictures, strict=True)]
            return torch.tensor(self._all(grades))
        pairs = [pair for group in groups(prompts) for pair in meetings(group, self.opponents)]
        compare = partial(self._ask, CHOICE)
        verdicts = self._all([partial(compare, prompts[a].text, [pictures[a], pictures[b]], _choice) for a, b in pairs])
        won, played = torch.zeros(len(images)), torch.zeros(len(images))
        for (a, b), verdict in zip(pairs, verdicts, strict=True):
            won[a] += verdict
            won[b] += 1 - verdict
            played[[a, b]] += 1
        return won / played

    def _all(self, questions: Sequence[Callable[[], T]]) -> list[T]:
        """The answers in order, ``concurrency`` questions at a time."""
        answers: dict[int, T] = {}
        lanes = min(self.concurrency, len(questions))
        failed: list[BaseException] = []

        def lane(first: int) -> None:
            for number in range(first, len(questions), lanes):
                if failed:
                    return
                try:
                    answers[number] = questions[number]()
                except BaseException as error:
                    failed.append(error)
                    raise

        errors = [later.error() for later in [BackgroundCall(partial(lane, first)) for first in range(lanes)]]
        for error in errors:
            if error:
                raise error
        return [answers[number] for number in range(len(questions))]

    def _ask(self, ours: str, text: str, pictures: Sequence[str], read: Callable[[str], T]) -> T:
        wording = (self.question or ours).replace("{prompt}", text)
        content: list[dict[str, Any]] = [{"type": "text", "text": wording}]
        content += [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        body = json.dumps(request).encode()

        def once(url: str) -> T:
            headers = {"Content-Type": "application/json"} | bearer(self.token_env)
            question = Question(f"{url.rstrip('/')}/chat/completions", headers, body, self.timeout_s, ANSWER_LIMIT)
            self._spent.append({"questions": 1})  # what fails may have cost too
            answer = read_object(question.ask())
            self._spent.append(_usage(answer))
            return read(_text(answer))

        return ask_with_retries([self.url], once, self.retries, self.backoff_s)


def groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The rows of each prompt text, which need company to be compared.

    Raises:
        RewardError: where one is alone.
    """
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt.text, []).append(row)
    for text, members in rows.items():
        if len(members) < 2:
            raise RewardError(f'pairwise judgement needs two or more images a prompt, and "{text}" has one')
    return list(rows.values())


def meetings(group: Sequence[int], opponents: int) -> list[tuple[int, int]]:
    """Who meets whom, first named shown first: everybody the next ``opponents`` of the ring, once in each order."""
    size = len(group)
    met: dict[tuple[int, int], None] = {}
    for ahead in range(1, min(opponents, size - 1) + 1):
        for place in range(size):
            one, other = group[place], group[(place + ahead) % size]
            met |= {(one, other): None, (other, one): None}
    return list(met)


def _data_url(image: Tensor) -> str:
    from PIL import Image

    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    into = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(into, "PNG")
    return "data:image/png;base64," + base64.b64encode(into.getvalue()).decode()


def _text(answer: Mapping[str, Any]) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise Failed("its answer is no chat completion") from error
    if not isinstance(text, str):
        raise Failed("its answer holds no text")
    return text


def _usage(answer: Mapping[str, Any]) -> dict[str, int]:
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return {key: counts[key] for key in USAGE if type(counts.get(key)) is int}


def _grade(text: str) -> float:
    if not re.fullmatch(r"\s*(10(\.0+)?|\d(\.\d+)?)\s*", text, re.ASCII):
        raise Failed(f'it said "{printable(text, 60)}" where a number from 0 to 10 was asked for')
    return float(text)


def _choice(text: str) -> float:
    word = text.strip().lower()
    if word not in WORTH:
        raise Failed(f'it said "{printable(text, 60)}" where A, B or tie was asked for')
    return WORTH[word]
