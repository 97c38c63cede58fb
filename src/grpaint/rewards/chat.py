"""Questions about pictures to a model behind OpenAI's chat completions, and how its answers are read."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from grpaint.core.errors import ConfigError
from grpaint.core.text import one_line
from grpaint.parallel.background import BackgroundCall
from grpaint.rewards.elsewhere.client import Failed, Question, ask_with_retries, bearer, check_url, read_object
from grpaint.rewards.elsewhere.remote import check_patience
from grpaint.storage.reading import parse_object

T = TypeVar("T")
ANSWER_LIMIT = 1 << 22  # bytes; models that think send their thoughts too
USAGE = ("prompt_tokens", "completion_tokens")
NO_THINKING = 'turn thinking off by request, such as {"chat_template_kwargs": {"enable_thinking": false}}'
# marks of models: <think>, also of Seed; of Kimi; of Magistral
_THOUGHT = re.compile(r"<(?:seed:)?(?:think|thinking|thought|reasoning)>|\u25c1think\u25b7|\[THINK\]", re.IGNORECASE)
_END_OF_THOUGHT = re.compile(
    r"</(?:seed:)?(?:think|thinking|thought|reasoning)>|\u25c1/think\u25b7|\[/THINK\]", re.IGNORECASE
)
_AROUND_ANSWER = re.compile(r"</?answer>|<\|(?:begin|end)_of_box\|>", re.IGNORECASE)
_OWN_FIELDS = {"model", "messages", "logprobs", "top_logprobs", "stream", "n"}


@dataclass
class Chat:
    """A model at an endpoint, and how long and how often it is asked.

    ``url`` is the address without /chat/completions (http://HOST:PORT/v1). ``request`` is a JSON object whose fields
    are added to each request; null takes a field of ours out.
    """

    url: str
    model: str
    token_env: str | None = None
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 0.5
    concurrency: int = 8
    request: str = "{}"
    _spent: list[dict[str, int]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        check_patience(self.timeout_s, self.retries, self.backoff_s)
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {self.concurrency}")
        if taken := sorted(_OWN_FIELDS & self._fields.keys()):
            raise ValueError(f"request names {', '.join(taken)}, which the reward sets itself; take that out")

    @property
    def _fields(self) -> dict[str, Any]:
        try:
            return parse_object(self.request, "request")
        except ConfigError as error:
            raise ValueError(f'{error} Write a JSON object, such as \'{{"reasoning_effort": "low"}}\'') from None

    def spent(self) -> dict[str, int]:
        """The number of questions, and of tokens if the endpoint counts them, since the last call."""
        counts, self._spent = self._spent, []
        return {name: sum(count.get(name, 0) for count in counts) for name in ("questions", *USAGE)}

    def ask_all(self, questions: Sequence[Callable[[], T]]) -> list[T]:
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

    def ask(
        self, text: str, pictures: Sequence[str], fields: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]
    ) -> T:
        """Ask one question about pictures (data URLs) and return what ``read`` makes of the answer's first choice.

        ``fields``: of the request, unless ``request`` replaces them.

        Raises:
            RewardError: no answer could be had or read, with the reason of the last try.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
        chat = {"model": self.model, "messages": [{"role": "user", "content": content}], **fields, **self._fields}
        body = json.dumps({name: value for name, value in chat.items() if value is not None}).encode()

        def ask(url: str) -> T:
            headers = {"Content-Type": "application/json"} | bearer(self.token_env)
            request = Question(f"{url.rstrip('/')}/chat/completions", headers, body, self.timeout_s, ANSWER_LIMIT)
            self._spent.append({"questions": 1})  # counted before it is sent: a failed question may cost money too
            try:
                answer = read_object(request.ask())
            except Failed as error:
                if not str(error).startswith("it answered 400"):
                    raise
                names = ", ".join(sorted(fields))
                hint = f"{error} (request = '{{\"NAME\": null}}' takes out a field that it does not know, of {names})"
                raise Failed(hint, retryable=False) from error
            self._spent.append(_usage(answer))
            return read(_choice(answer))

        return ask_with_retries([self.url], ask, self.retries, self.backoff_s)


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        choice = answer["choices"][0]
        choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise Failed("its answer is not a chat completion") from error
    return choice if isinstance(choice, Mapping) else {}


def _usage(answer: Mapping[str, Any]) -> dict[str, int]:
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return {key: counts[key] for key in USAGE if type(counts.get(key)) is int}


def answer_text(choice: Mapping[str, Any]) -> str:
    """Return the text of an answer without the thoughts before it.

    Raises:
        Failed: it has none; with the way out if the model was still thinking.
    """
    message = choice["message"]
    text = _text_of(message["content"])
    thought = message.get("reasoning_content") or message.get("reasoning")
    answer = None if text is None else without_thoughts(text)
    reason = choice.get("finish_reason")
    if not text and thought and reason == "stop":
        raise Failed(f"it thought, and gave no answer; {NO_THINKING}")
    if (text is not None and answer is None) or (not text and (thought or reason == "length")):
        raise Failed(
            "it had not answered when its tokens were used up, and was still thinking; raise max_tokens, or "
            f"{NO_THINKING}"
        )
    if answer is None:
        why = message.get("refusal") or reason
        raise Failed("its answer contains no text" + (f" ({one_line(str(why), 60)})" if why else ""))
    return answer


def _text_of(content: Any) -> str | None:
    """The text of a message's content: a text, or a list of parts, of which thoughts are none."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        content = "".join(str(part.get("text", "")) for part in parts) if parts else None
    return content if isinstance(content, str) else None


def without_thoughts(text: str) -> str | None:
    """Return what follows a model's thoughts in its text; None if they have no end."""
    answer = re.split(_END_OF_THOUGHT, text)[-1]
    if re.search(_THOUGHT, answer):
        return None
    return answer.strip()


def is_thought(word: str) -> bool:
    """Whether an answer that begins with this word begins with thoughts."""
    return bool(re.match(_THOUGHT, word))


def plain(text: str) -> str:
    """Return an answer without marks of Markdown, <answer> or a box around it, and without a full stop at its end."""
    text = re.sub(_AROUND_ANSWER, "", text)
    return text.strip().strip("*_`#\"' \n").removesuffix(".").strip("*_`\"' \n")
