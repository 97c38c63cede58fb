"""A vision-language model as judge, played by a real server that speaks chat completions and judges by brightness."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat

import tiny_runs
from grpaint.core import Prompt, RewardError
from grpaint.core.errors import ConfigError
from grpaint.rewards.vlm import VlmJudge, comparisons, group_rows
from tiny_runs import TINY, command, lines

pytestmark = pytest.mark.usefixtures("small_network")

IMAGES = torch.stack([torch.full((3, 4, 4), level) for level in (0.2, 0.8, 0.5, 0.4)])
PROMPTS = [Prompt("a {red} circle")] * 4
QUICK = {"timeout_s": 600.0, "retries": 1, "backoff_s": 0.01}


class Judge(BaseHTTPRequestHandler):
    """Grades brightness from 0 to 10; of two images prefers the brighter."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), request))
        if refusal := self.server.refuses(request):
            self.reply({"error": {"message": refusal}}, 400)
            return
        _, *pictures = request["messages"][0]["content"]
        seen = [brightness(part["image_url"]["url"]) for part in pictures]
        if isinstance(self.server.says, dict):
            self.reply({"choices": [self.server.says]})
            return
        answer = self.server.says or (f"{10 * seen[0]:.1f}" if len(seen) == 1 else verdict(*seen))
        status = self.server.statuses.pop() if self.server.statuses else 200
        if status != 200:
            self.reply({"error": {"message": "slow down", "type": "rate_limit"}}, status)
            return
        usage = {"prompt_tokens": 100 * len(seen), "completion_tokens": 1}
        self.reply({"choices": [{"message": {"role": "assistant", "content": answer}}], "usage": usage})

    def reply(self, answer, status=200):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def brightness(url):
    head, _, picture = url.partition(",")
    assert head == "data:image/png;base64"
    return ImageStat.Stat(Image.open(io.BytesIO(base64.b64decode(picture)))).mean[0] / 255


def verdict(first, second):
    return "tie" if abs(first - second) < 0.01 else "A" if first > second else "B"


@pytest.fixture
def judge():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.requests, server.says, server.statuses, server.refuses = [], "", [], lambda request: ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield server
    server.shutdown()
    server.server_close()


def test_grades(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    reward = VlmJudge(judge.url, "eye-1", token_env="JUDGE_KEY", **QUICK)
    assert reward(IMAGES, PROMPTS).tolist() == pytest.approx([2, 8, 5, 4], abs=0.05)
    path, headers, request = judge.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (request["model"], request["temperature"]) == ("eye-1", 0)
    assert "a {red} circle" in request["messages"][0]["content"][0]["text"]
    assert reward.spent() == {"questions": 4, "prompt_tokens": 400, "completion_tokens": 4}
    assert reward.spent() == {"questions": 0, "prompt_tokens": 0, "completion_tokens": 0}


@pytest.mark.parametrize(("opponents", "questions"), [(1, 8), (2, 12), (9, 12)])
def test_pairs_meet_in_both_orders(judge, opponents, questions):
    reward = VlmJudge(judge.url, "eye-1", measure="pairwise", opponents=opponents, **QUICK)
    scores = reward(IMAGES, PROMPTS)
    assert len(judge.requests) == questions
    expected = {1: [0, 1, 0.5, 0.5], 2: [0, 1, 2 / 3, 1 / 3], 9: [0, 1, 2 / 3, 1 / 3]}[opponents]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32))


def test_a_judge_that_always_says_a_finds_no_difference(judge):
    judge.says = "A"
    assert VlmJudge(judge.url, "eye-1", measure="pairwise", **QUICK)(IMAGES, PROMPTS).tolist() == [0.5] * 4


def test_ties_count_half(judge):
    scores = VlmJudge(judge.url, "eye-1", measure="pairwise", **QUICK)(IMAGES[[1, 1, 0]], PROMPTS[:3])
    assert scores.tolist() == [0.75, 0.75, 0.0]


def test_comparisons_pair_images_of_a_prompt():
    assert comparisons([4, 7], 3) == [(4, 7), (7, 4)]
    assert len(comparisons(range(5), 2)) == 20
    assert group_rows([Prompt("a"), Prompt("b"), Prompt("a"), Prompt("b")]) == [[0, 2], [1, 3]]
    with pytest.raises(RewardError, match='two or more images a prompt, and "b" has one'):
        group_rows([Prompt("a"), Prompt("a"), Prompt("b")])


@pytest.mark.parametrize(
    "answer",
    ["I would give it a 7.", "11", "-1", "7/5", "7/100", "3 or 8", "", "seven", "1e1", "nan", "10.5", "\u0667"],
    ids=str,
)
def test_an_answer_without_a_grade_is_refused(judge, answer):
    judge.says = answer or " "
    with pytest.raises(RewardError, match="instead of a number from 0 to 10; asked 2 times"):
        VlmJudge(judge.url, "eye-1", **QUICK)(IMAGES[:1], PROMPTS[:1])


ANSWERS = [
    *("7", " 7.0\n", "**7**", "`7`", "7.", "7/10", "**7 / 10**", "# 7", '"7"'),
    *("<think>It is red, so 9.\n\nOr 3?</think>\n\n7", "It may be 9.</think>7", "<thinking>9</thinking> **7**"),
    *(
        "\u25c1think\u25b79?\u25c1/think\u25b77",
        "[THINK]9[/THINK]7",
        "<seed:think>9</seed:think>7",
        "<thought>9</thought>7",
    ),
    *("<think>9</think><answer>7</answer>", "<|begin_of_box|>7<|end_of_box|>", [{"type": "text", "text": "7"}]),
    [{"type": "thinking", "thinking": [{"type": "text", "text": "9"}]}, {"type": "text", "text": "7"}],
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_grade_is_read_behind_thoughts_and_within_marks(judge, answer):
    judge.says = answer
    assert VlmJudge(judge.url, "eye-1", **QUICK)(IMAGES[:1], PROMPTS[:1]).tolist() == [7.0]


@pytest.mark.parametrize("answer", ["**B**", "b.", "<think>A or B? A!</think>\nB", '"B"'])
def test_a_choice_is_read_behind_thoughts_and_within_marks(judge, answer):
    judge.says = answer
    assert VlmJudge(judge.url, "eye-1", measure="pairwise", **QUICK)(IMAGES[:2], PROMPTS[:2]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": "<think>it is red, so I would"}, "finish_reason": "length"},
        {"message": {"content": None, "reasoning_content": "it is red"}, "finish_reason": "length"},
        {"message": {"content": None, "reasoning": "it is red"}},
        {"message": {"content": ""}, "finish_reason": "length"},
        {"message": {"content": "\u25c1think\u25b7it is red"}, "finish_reason": "length"},
    ],
)
def test_a_judge_that_is_still_thinking_is_told_with_the_way_out(judge, choice):
    judge.says = choice
    with pytest.raises(RewardError, match="still thinking; raise max_tokens, or turn thinking off by request"):
        VlmJudge(judge.url, "eye-1", **QUICK)(IMAGES[:1], PROMPTS[:1])


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (
            {"message": {"content": None, "reasoning": "8?"}, "finish_reason": "stop"},
            "it thought, and gave no answer; turn",
        ),
        ({"message": {"content": None, "refusal": "I may not"}}, r"contains no text \(I may not\)"),
        ({"message": {"content": None}, "finish_reason": "content_filter"}, r"contains no text \(content_filter\)"),
    ],
)
def test_an_answer_without_text_is_told_with_its_reason(judge, choice, reason):
    judge.says = choice
    with pytest.raises(RewardError, match=reason):
        VlmJudge(judge.url, "eye-1", **QUICK)(IMAGES[:1], PROMPTS[:1])


def test_fields_of_requests_can_be_added_and_taken_out(judge):
    def refuses(request):
        bad = {"max_tokens", "temperature"} & request.keys()
        return f"unsupported: {', '.join(sorted(bad))}; use max_completion_tokens" if bad else ""

    judge.refuses = refuses
    with pytest.raises(RewardError, match=r"answered 400: unsupported: .* takes out a field .*, of max_tokens, temp"):
        VlmJudge(judge.url, "eye-1", **QUICK)(IMAGES[:1], PROMPTS[:1])
    assert len(judge.requests) == 1  # the same request would be refused again
    request = {"max_tokens": None, "temperature": None, "max_completion_tokens": 900, "reasoning_effort": "low"}
    reward = VlmJudge(judge.url, "eye-1", request=json.dumps(request), **QUICK)
    assert reward(IMAGES[:1], PROMPTS[:1]).tolist() == [2.0]
    sent = judge.requests[-1][2]
    assert sent.keys() == {"model", "messages", "max_completion_tokens", "reasoning_effort"}
    assert (sent["max_completion_tokens"], sent["reasoning_effort"]) == (900, "low")


def test_an_answer_without_a_choice_is_refused(judge):
    judge.says = "Image A is better"
    with pytest.raises(RewardError, match='it answered "Image A is better" instead of A, B or tie'):
        VlmJudge(judge.url, "eye-1", measure="pairwise", **QUICK)(IMAGES, PROMPTS)


def test_a_busy_judge_is_retried_and_a_forbidding_one_is_not(judge):
    judge.statuses = [429, 503]
    assert VlmJudge(judge.url, "e", **QUICK | {"retries": 2})(IMAGES[:1], PROMPTS[:1]).tolist() == [2.0]
    judge.statuses = [403] * 9
    with pytest.raises(RewardError, match="answered 403: slow down; asked once"):
        VlmJudge(judge.url, "e", **QUICK)(IMAGES[:1], PROMPTS[:1])


def test_settings_are_checked():
    for settings, words in (
        ({"url": "localhost"}, "is no address"),
        ({"question": "how good?"}, "{prompt}"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"request": "{"}, "request:1: not JSON"),
        ({"request": "[]"}, "must be a JSON object"),
        ({"request": '{"messages": []}'}, "request names messages, which the reward sets itself"),
    ):
        with pytest.raises(ValueError, match=words):
            VlmJudge(**{"url": "http://a/v1", "model": "e"} | settings)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        VlmJudge("http://a/v1", "e", token_env="NO_SUCH_KEY").start()


def test_a_run_books_what_the_judge_cost(judge, tmp_path):
    table = f'rewards={{judge={{kind="vlm-judge",url="{judge.url}",model="eye-1",measure="pairwise",opponents=1}}}}'
    with tiny_runs.folder(tmp_path, keep=False):
        end = command("train", "flow-grpo-fast", "--name", "it", sets=[*TINY, table, "train.iterations=1"])
        assert (end.code, end.err) == (0, "")
        (line,) = lines(Path("runs/it/metrics.jsonl"))
    assert line["cost/judge/questions"] == 3 * 8
    assert line["cost/judge/prompt_tokens"] == 3 * 8 * 200
    assert line["reward/judge"] == 0.5
