"""Scores that are read out of a vision-language model: behind an endpoint, or opened here from its folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grpaint.core.policy import Prompt
from grpaint.core.reward import WeightSource
from grpaint.core.text import one_line
from grpaint.images.encoding import eight_bit_picture, png_data_url
from grpaint.rewards.chat import NO_THINKING, Chat, answer_text, is_thought, without_thoughts
from grpaint.rewards.elsewhere.client import Failed, bearer
from grpaint.rewards.model import TransformersReward
from grpaint.rewards.readout import MOST_ANSWERS, Readout
from grpaint.vision.vlm import VLM_FILES, answer_head, load_vlm


@dataclass
class VlmScore(Chat):
    """The readout of a model behind an endpoint with OpenAI's chat completions, such as vLLM's.

    ``readout``: the question and what is read of the answer. For probabilities the endpoint must send ``top_logprobs``;
    a word that is not among its 20 likeliest counts as 0.
    """

    readout: Readout = field(kw_only=True)

    def start(self) -> list[str]:
        """Check that the token is set; the endpoint itself is first used when images are scored."""
        bearer(self.token_env)
        return [f"{self.model} at {self.url} scores"]

    def stop(self) -> None:
        """Do nothing: no connection stays open between questions."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": self.readout.max_tokens}
        if self.readout.readout != "number":
            fields |= {"max_tokens": 1, "logprobs": True, "top_logprobs": MOST_ANSWERS}
        pictures = [png_data_url(eight_bit_picture(image)) for image in images]
        texts = [self.readout.text(prompt) for prompt in prompts]
        pairs = zip(texts, pictures, strict=True)
        return torch.tensor(self.ask_all([partial(self.ask, text, [p], fields, self._score) for text, p in pairs]))

    def _score(self, choice: Mapping[str, Any]) -> float:
        if self.readout.readout == "number":
            text = answer_text(choice)
            try:
                return self.readout.of_text(text)
            except ValueError as error:
                raise Failed(f'it answered "{one_line(text, 60)}" {error}') from error
        try:
            return self.readout.of_probabilities(_first_words(choice))
        except ValueError as error:
            raise Failed(str(error)) from error


def _first_words(choice: Mapping[str, Any]) -> dict[str, float]:
    """Return the probability of each likely first word of an answer; tokens that differ in blanks are one word."""
    words: dict[str, float] = {}
    try:
        for item in choice["logprobs"]["content"][0]["top_logprobs"]:
            word, probability = item["token"].strip(), math.exp(item["logprob"])
            words[word] = words.get(word, 0.0) + probability
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise Failed("its answer has no top_logprobs, of which probabilities are read") from error
    if words and is_thought(max(words, key=lambda word: words[word])):
        raise Failed(f"it begins with a thought, so its first word is no answer; {NO_THINKING}")
    if not sum(words.values()) <= 1.001:
        raise Failed("the probabilities of its top_logprobs sum to more than 1")
    return words


@dataclass(frozen=True, kw_only=True)
class VlmHead(TransformersReward):
    """The readout of a vision-language model of transformers, opened here; one image at a time.

    ``weights``: its folder, with config, processor and safetensors, or its name on the hub. With ``head``, a
    safetensors file of linear layers with ReLU between them, the score is its first output for the last token's hidden
    state (a second one, such as HPSv3's spread, is not used), normalised by the readout's mean and spread.
    """

    weights: str
    readout: Readout
    head: str = ""

    def sources(self) -> tuple[WeightSource, ...]:
        sources = (WeightSource("weights", self.weights, VLM_FILES, self.weights),)
        return (*sources, WeightSource("head", self.head, ("head.safetensors",), self.head)) if self.head else sources

    def score(self, images: Tensor, prompts: Sequence[Prompt], /) -> Tensor:
        file, *heads = self.files()
        model = load_vlm(file.parent, str(images.device), self.precision)
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            inputs = model.inputs(eight_bit_picture(image), self.readout.text(prompt))
            if heads:
                value = answer_head(heads[0], str(images.device))(model.last_hidden(inputs))[0].item()
                scores.append((value - self.readout.mean) / self.readout.spread)
            elif self.readout.readout == "number":
                scores.append(self._number(model.answer(inputs, self.readout.max_tokens)))
            else:
                scores.append(self.readout.of_probabilities(model.first_words(inputs, tuple(self.readout.answers))))
        return torch.tensor(scores)

    def _number(self, text: str) -> float:
        answer = without_thoughts(text)
        if answer is None:
            most = self.readout.max_tokens
            raise ValueError(f"{self.weights} was still thinking after {most} tokens; raise max_tokens")
        try:
            return self.readout.of_text(answer)
        except ValueError as error:
            raise ValueError(f'{self.weights} answered "{one_line(text, 60)}" {error}') from error
