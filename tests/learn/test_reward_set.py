"""A reward that answers wrongly stops the run, with its name and the prompts; nothing is repaired."""

import signal
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from grpaint.core import Prompt, RewardError, RunError
from grpaint.learn import RewardSet
from grpaint.run.signals import Listener, ctrl_c

PROMPTS = [Prompt(text) for text in ("red", "green", "blue", "white")]
IMAGES = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def brightness(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return images.flatten(1).mean(1)


def answers(value: object) -> RewardSet:
    return RewardSet({"good": brightness, "bad": lambda images, prompts: value}, {"good": 1.0, "bad": 1.0})


class NeedsReference:
    needs_reference = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.ones(len(images))


def test_scores_stand_in_columns_under_their_names() -> None:
    table = RewardSet({"a": brightness, "b": lambda i, p: 2 * brightness(i, p)}, {"a": 1.0, "b": 0.5}).score(
        IMAGES, PROMPTS
    )
    assert list(table.columns) == ["a", "b"]
    assert torch.equal(table.columns["a"], IMAGES.mean((1, 2, 3)))
    torch.testing.assert_close(table.total(), 2 * table.columns["a"])
    assert table.weights == {"a": 1.0, "b": 0.5}
    assert table.applies == {}


@pytest.mark.parametrize("answer", [torch.tensor([1, 2, 3, 4]), torch.ones(4, dtype=torch.float64), [0.5] * 4], ids=str)
def test_scores_become_single_precision(answer: object) -> None:
    scores = answers(answer).score(IMAGES, PROMPTS).columns["bad"]
    assert scores.dtype == torch.float32
    assert scores.shape == (4,)


def test_a_reward_that_raises_is_named_with_its_message() -> None:
    def broken(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise KeyError("no weights")

    with pytest.raises(RewardError, match=r'reward broken raised KeyError: .*no weights.*"red", "green", "blue"') as e:
        RewardSet({"good": brightness, "broken": broken}, {}).score(IMAGES, PROMPTS)
    assert isinstance(e.value.__cause__, KeyError)
    assert isinstance(e.value, RunError)
    assert "white" not in str(e.value)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
def test_a_score_that_is_no_number_is_named_with_its_prompts(value: float, word: str) -> None:
    with pytest.raises(RewardError, match=rf'reward bad returned {word} for 2 images \(prompts: "green", "white"\)'):
        answers(torch.tensor([0.0, value, 1.0, value])).score(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("answer", "shape"),
    [(torch.ones(3), r"\(3,\)"), (torch.ones(4, 1), r"\(4, 1\)"), (torch.tensor(1.0), r"\(\)"), ([], r"\(0,\)")],
    ids=["short", "column", "scalar", "none"],
)
def test_a_wrong_number_of_scores_is_named_with_its_shape(answer: object, shape: str) -> None:
    with pytest.raises(RewardError, match=rf'reward bad returned shape {shape} for 4 images.*"red", "green", "blue"'):
        answers(answer).score(IMAGES, PROMPTS)


def test_scores_in_a_sparse_tensor_are_scores() -> None:
    scores = torch.tensor([0.0, 1.0, 0.0, 2.0])
    assert torch.equal(answers(scores.to_sparse()).score(IMAGES, PROMPTS).columns["bad"], scores)


def test_a_tensor_without_a_shape_is_named() -> None:
    with pytest.raises(RewardError, match="reward bad"):
        answers(torch.nested.nested_tensor([torch.ones(1)] * 4, layout=torch.strided)).score(IMAGES, PROMPTS)


@pytest.mark.parametrize("answer", [None, "high", [1.0, None, 2.0, 3.0]], ids=str)
def test_an_answer_that_is_no_tensor_is_named(answer: object) -> None:
    with pytest.raises(RewardError, match="reward bad"):
        answers(answer).score(IMAGES, PROMPTS)


def test_a_reward_is_called_without_gradients() -> None:
    calls = []

    def watching(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return brightness(images, prompts)

    table = RewardSet({"w": watching}, {}).score(IMAGES.clone().requires_grad_(), PROMPTS)
    assert calls == [False]
    assert not table.columns["w"].requires_grad


def test_a_reward_that_needs_references_applies_to_rows_that_began_at_one() -> None:
    references = torch.tensor([True, False, False, True])
    table = RewardSet({"plain": brightness, "edit": NeedsReference()}, {}).score(IMAGES, PROMPTS, references)
    assert set(table.applies) == {"edit"}
    assert torch.equal(table.applies["edit"], references)
    expected = IMAGES.mean((1, 2, 3)) + references.float()
    torch.testing.assert_close(table.total(), expected)


class Own(BaseException):
    """Neither an error nor an end that Python knows."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(), "StopIteration"),
        (MemoryError(), "MemoryError"),
        (BrokenPipeError(32, "Broken pipe"), r"BrokenPipeError: \[Errno 32\] Broken pipe"),
        (Own("two\nlines, and \x1b"), r"Own: two lines, and \\x1b"),
        (ValueError("x" * 5000), "ValueError: x{900,} .."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_reward_raises_becomes_an_error_with_its_name(error: BaseException, words: str) -> None:
    def broken(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise error

    with ctrl_c(), pytest.raises(RewardError, match=rf"^reward bad raised {words} \(first prompts") as raised:
        RewardSet({"bad": broken}, {}).score(IMAGES, PROMPTS)
    assert raised.value.__cause__ is error
    assert len(str(raised.value)) < 1200


def test_ctrl_c_passes_through_a_reward() -> None:
    def asleep(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return images

    def closed(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        signal.raise_signal(signal.SIGHUP)
        return images

    with ctrl_c(), pytest.raises(KeyboardInterrupt):
        RewardSet({"asleep": asleep}, {}).score(IMAGES, PROMPTS)
    listener = Listener()
    listener.requested = signal.SIGHUP
    with listener, pytest.raises(KeyboardInterrupt):  # the second end of a terminal
        RewardSet({"asleep": closed}, {}).score(IMAGES, PROMPTS)
    with pytest.raises(KeyboardInterrupt):  # as Python itself raises it
        RewardSet({"asleep": asleep}, {}).score(IMAGES, PROMPTS)
