"""Scores read out of a vision-language model: a tiny one with random weights, and a server that speaks as vLLM does."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import rewards.test_vlm as test_vlm
from grpaint.core import Prompt, Reward, RewardError
from grpaint.core.errors import CheckpointError, ConfigError
from grpaint.images.encoding import eight_bit_picture
from grpaint.recipe.build import build
from grpaint.rewards.readout import Readout
from grpaint.rewards.vlm_score import VlmHead, VlmScore
from grpaint.vision.vlm import answer_head, load_vlm
from rewards.tiny_vlm import vlm_folder

QUESTION = "a {prompt} circle"
IMAGES = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt("red"), Prompt("good")]
LEVELS = {"good": 5.0, "fair": 3.0, "bad": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vlm_folder(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def probabilities(folder):
    """Of every token, for each image, by transformers' own classes and no code of ours."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    out = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        text = f"USER: <image> a {prompt.text} circle ASSISTANT:"
        inputs = processor(images=eight_bit_picture(image), text=text, return_tensors="pt")
        with torch.no_grad():
            found = model.eval()(**inputs, output_hidden_states=True)
        words = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
        out.append(
            (dict(zip(words, found.logits[0, -1].softmax(0).tolist(), strict=True)), found.hidden_states[-1][0, -1])
        )
    return out


def scores(folder, **readout):
    return VlmHead(weights=str(folder), readout=Readout(question=QUESTION, **readout))(IMAGES, PROMPTS).tolist()


def test_the_probability_of_a_word_is_that_of_the_next_token(folder, probabilities):
    expected = [table["Yes"] for table, _ in probabilities]
    assert scores(folder) == pytest.approx(expected, rel=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-4
    weighted = [2 * table["Yes"] - table["No"] for table, _ in probabilities]
    assert scores(folder, answers={"Yes": 2.0, "No": -1.0}) == pytest.approx(weighted, rel=1e-5)


def test_an_expectation_weighs_words_against_each_other_and_is_normalised(folder, probabilities):
    expected = [sum(v * t[w] for w, v in LEVELS.items()) / sum(t[w] for w in LEVELS) for t, _ in probabilities]
    assert scores(folder, readout="expectation", answers=LEVELS) == pytest.approx(expected, rel=1e-5)
    normalised = [(value - 3) / 0.5 for value in expected]
    assert scores(folder, readout="expectation", answers=LEVELS, mean=3.0, spread=0.5) == pytest.approx(
        normalised, rel=1e-5
    )


def test_a_head_reads_the_last_hidden_state(folder, probabilities, tmp_path):
    draw = torch.Generator().manual_seed(1)
    first, second = torch.randn(6, 32, generator=draw), torch.randn(2, 6, generator=draw)
    bias = torch.randn(6, generator=draw)
    save_file(
        {"rm_head.0.weight": first, "rm_head.0.bias": bias, "rm_head.3.weight": second}, tmp_path / "head.safetensors"
    )
    expected = [((second @ (first @ hidden + bias).relu())[0].item() - 1) / 2 for _, hidden in probabilities]
    reward = VlmHead(
        weights=str(folder),
        head=str(tmp_path / "head.safetensors"),
        readout=Readout(question=QUESTION, mean=1.0, spread=2.0),
    )
    reward.check()
    assert reward(IMAGES, PROMPTS).tolist() == pytest.approx(expected, rel=1e-4)
    for tensors, reason in (
        ({"a.weight": first}, "layers N.weight"),
        ({"0.weight": first, "1.weight": first.clone()}, "the widths"),
    ):
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match=reason):
            answer_head(tmp_path / "bad.safetensors", "cpu")
        answer_head.cache_clear()


def test_a_number_is_read_of_the_likeliest_answer(folder):
    model = load_vlm(folder, "cpu", "fp32")
    inputs = model.inputs(eight_bit_picture(IMAGES[0]), "a red circle")
    answer = model.answer(inputs, 4)
    with torch.no_grad():
        first = model.model(**inputs).logits[0, -1].argmax().item()
    assert answer.split()[0] == model.processor.tokenizer.convert_ids_to_tokens(first)
    with pytest.raises(ValueError, match=r'answered ".*" instead of a number from 0 to 10 after "Score:"'):
        scores(folder, readout="number", marker="Score:", max_tokens=4)


@pytest.mark.parametrize(
    ("text", "score"), [("<think>3 cats</think> 8", 8.0), ("2 <thinking>9</thinking>4", 4.0), ("<think>3", None)]
)
def test_a_number_is_not_one_of_the_thoughts(folder, monkeypatch, text, score):
    monkeypatch.setattr("grpaint.vision.vlm.VisionLanguageModel.answer", lambda *_: text)
    if score is None:
        with pytest.raises(ValueError, match=r"still thinking after .* raise max_tokens"):
            scores(folder, readout="number")
    else:
        assert scores(folder, readout="number") == [score] * len(IMAGES)


def test_models_and_words_that_cannot_be_used_are_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match='"wonderful" is no single token'):
        scores(folder, answers={"wonderful": 1.0})
    with pytest.raises(ValueError, match=r'weights = ".*": no config.json there'):
        VlmHead(weights=str(tmp_path), readout=Readout(question=QUESTION)).check()
    (tmp_path / "config.json").write_text('{"model_type": "llava", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="no vision-language model that can be opened"):
        load_vlm(tmp_path, "cpu", "fp32")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"question": "no place"}, "readout.question must contain {prompt}"),
        ({"answers": {}}, "answers must have 1 to 20 words"),
        ({"readout": "expectation"}, "answers must have two or more words"),
        ({"spread": 0.0}, "spread and max_tokens must be positive"),
        ({"low": 3.0, "high": 3.0}, "low less than high"),
    ],
)
def test_settings_of_a_readout_are_checked_with_their_key(settings, reason):
    table = {"kind": "vlm-head", "weights": "w", "readout": {"question": QUESTION} | settings}
    with pytest.raises(ConfigError, match=reason.replace("{", "\\{")):
        build(Reward, table, "rewards.x")
    made, plain = build(Reward, table | {"readout": {"question": QUESTION, "answers": LEVELS}}, "rewards.x")
    assert build(Reward, plain, "rewards.x")[0] == made


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Mark: 4.25", 4.25),
        ("Mark: 1\nno.\nMark: **3**.", 3),
        ("Mark: .5", 0.5),
        ("Mark: 11", None),
        ("Mark: 4,5", None),
        ("4", None),
    ],
)
def test_a_number_is_the_first_after_the_last_marker(text, score):
    readout = Readout(question=QUESTION, readout="number", marker="Mark:")
    if score is None:
        with pytest.raises(ValueError, match="instead of a number from 0 to 10"):
            readout.of_text(text)
    else:
        assert readout.of_text(text) == score


server = test_vlm.judge  # the fixture, under another name


def first_token(**probabilities):
    """A choice as vLLM sends it with top_logprobs."""
    tops = [{"token": token, "logprob": math.log(p), "bytes": []} for token, p in probabilities.items()]
    content = [{"token": tops[0]["token"], "logprob": tops[0]["logprob"], "top_logprobs": tops}]
    return {
        "index": 0,
        "message": {"content": tops[0]["token"]},
        "logprobs": {"content": content},
        "finish_reason": "length",
    }


def asked(server, **readout):
    reward = VlmScore(server.url, "eye-2", readout=Readout(question=QUESTION, **readout), **test_vlm.QUICK)
    return reward(IMAGES[:1], PROMPTS[:1]).item()


def test_probabilities_of_a_server_are_read_as_those_of_a_model_here(server):
    server.says = first_token(**{" Yes": 0.5, "Yes": 0.125, "No": 0.25})
    assert asked(server) == pytest.approx(0.625)
    sent = server.requests[0][2]
    assert (sent["logprobs"], sent["top_logprobs"], sent["max_tokens"], sent["temperature"]) == (True, 20, 1, 0)
    assert sent["messages"][0]["content"][0]["text"] == "a red circle"
    assert asked(server, answers={"Perhaps": 1.0}) == 0
    server.says = first_token(good=0.4, bad=0.1, other=0.3)
    assert asked(server, readout="expectation", answers=LEVELS) == pytest.approx((5 * 0.4 + 0.1) / 0.5)
    assert asked(server, readout="expectation", answers=LEVELS, mean=4.0, spread=2.0) == pytest.approx(0.1, abs=1e-6)


def test_numbers_of_a_server_are_read_behind_thoughts(server):
    server.says = "<think>Mark: 2</think> Composition: 3. Mark: 4.25"
    assert asked(server, readout="number", marker="Mark:") == 4.25
    assert server.requests[0][2]["max_tokens"] == 512


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"message": {"content": "Yes"}}, "no top_logprobs"),
        (
            {"message": {"content": "Yes"}, "logprobs": {"content": [{"top_logprobs": [{"token": 1}]}]}},
            "no top_logprobs",
        ),
        (first_token(Yes=0.9, No=0.9), "sum to more than 1"),
        (first_token(**{"<think>": 0.9, "good": 0.05}), "begins with a thought, .* turn thinking off by request"),
        (first_token(Maybe=0.9), "none of good, fair, bad is among the likely first words"),
    ],
)
def test_answers_without_usable_probabilities_are_named(server, answer, reason):
    server.says = json.loads(json.dumps(answer))
    with pytest.raises(RewardError, match=reason):
        asked(server, readout="expectation", answers=LEVELS)
