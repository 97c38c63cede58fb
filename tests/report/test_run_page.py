"""The page of a run, as Python makes it: what it says, that foreign text stays text, and what fits into one file."""

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser

import pytest

from grpaint.core.errors import ConfigError
from grpaint.report.pages.run import run_page
from grpaint.report.run_parts.curves import curve_data
from grpaint.report.run_parts.origin import next_commands
from grpaint.report.run_parts.score_map import score_map
from grpaint.report.run_parts.standing import duration, standing_cards
from grpaint.report.run_record import RunRecord
from grpaint.run.page import write_page
from grpaint.run.pictures import held_out_file
from grpaint.run.record import read_record
from grpaint.run.single_page import MOST_BYTES, write_single
from report.runs import (
    CAPTIONS,
    FOREIGN,
    add_pictures,
    add_rollout,
    evaluation_line,
    metrics_line,
    write_run,
)
from tiny_runs import command

ALARM = {
    "began": 4,
    "clean": 2,
    "reward": {"base": 0.1, "now": 0.9},
    "judges": {"background": {"base": 0.01, "now": 0.09, "ratio": 9.0}},
}


class _Page(HTMLParser):
    """The tags, attributes, scripts and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.sheets: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())
        self.policy = next(a["content"] for t, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")
        self.data = json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        {"script": self.scripts, "style": self.sheets}.get(self._inside, self.words).append(data)


def page_of(folder) -> _Page:
    """The page of a run folder."""
    return _Page(write_page(folder).read_text(encoding="utf-8"))


def cards_of(folder):
    """The cards of the first part by title, each as one text."""
    cards = standing_cards(read_record(folder))
    return {card.title.partition(",")[0]: " ".join([card.headline, card.change, *card.sentences]) for card in cards}


def digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def test_foreign_text_stays_text_and_only_hashed_scripts_run(tmp_path):
    run = write_run(tmp_path / f"<b>\U0001f3a8 {FOREIGN.replace('/', '')}", status="failed", reason=FOREIGN)
    add_pictures(run, [0, 2, 4])
    add_rollout(run, 4)
    page = page_of(run)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "b", "iframe", "object"}
    assert not [a for _, a in page.tags if any(name == "style" or name.startswith("on") for name in a)]
    assert page.data["film"]["captions"] == list(CAPTIONS)
    assert [group["caption"] for group in page.data["groups"]] == list(CAPTIONS)
    assert page.text.count(FOREIGN) >= 2  # the reason, and the caption of a changed prompt
    assert f"<b>\U0001f3a8 {FOREIGN.replace('/', '')}" in page.text
    assert len(page.scripts) > 5
    for script in page.scripts[1:]:
        assert digest(script) in page.policy
    for sheet in page.sheets:
        assert digest(sheet) in page.policy
    assert "unsafe" not in page.policy
    assert not [a for _, a in page.tags if a.get("src") or a.get("href", "#")[0] != "#"]


def test_the_page_shows_pictures_by_computed_names_and_leaves_out_missing_ones(tmp_path):
    run = write_run(tmp_path / "run")
    add_pictures(run, [4, 0, 2])  # a line out of order
    (run / held_out_file(2, 1)).unlink()
    page = page_of(run)
    assert [time["iteration"] for time in page.data["film"]["times"]] == [0, 2, 4]
    assert [time["files"] for time in page.data["film"]["times"]] == [
        ["samples/held-out/000000/00.webp", "samples/held-out/000000/01.webp"],
        ["samples/held-out/000002/00.webp", None],
        ["samples/held-out/000004/00.webp", "samples/held-out/000004/01.webp"],
    ]
    assert "1 held-out picture is missing" in page.text
    assert page.data["film"]["times"][0]["scores"]["reward/checker"] == [0.25, 0.25]


def test_groups_of_the_last_rollout_are_sorted_and_flat_ones_told(tmp_path):
    run = write_run(tmp_path / "run")
    add_rollout(run, 2)
    add_rollout(run, 4)
    page = page_of(run)
    first, second = page.data["groups"]
    assert [member["total"] for member in first["members"]] == [1.0, 0.5, 0.25]
    assert [member["file"] for member in first["members"]] == [
        f"samples/rollout/000004/000-00{member}.webp" for member in (1, 2, 0)
    ]
    assert (first["flat"], second["flat"]) == (False, True)
    assert "The first 2 of 12 prompts. 1 group has no spread" in page.text
    assert "Last rollout, iteration 4" in page.text


def test_a_run_of_an_earlier_release_has_a_page_without_pictures(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    assert page.data["film"] is None
    assert page.data["groups"] == []
    assert "The run has kept no pictures over time" in page.text
    assert not {"pictures", "rollout"} & {attributes.get("id") for _, attributes in page.tags}


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "pictures.jsonl"])
def test_a_damaged_line_is_left_out_and_told(tmp_path, name):
    run = write_run(tmp_path / "run")
    add_pictures(run, [0, 2, 4])
    lines = (run / name).read_text().splitlines()
    (run / name).write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    page = page_of(run)
    assert f"{name}: line 2 damaged (not JSON" in page.text
    assert page.data["film"]["times"][-1]["iteration"] == 4


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("run.json", "[]", "run.json:1: must be a JSON object"),
        ("run.toml", "=", "run.toml: not TOML"),
        ("samples/rollout/000004/rollout.json", '{"iteration": 4, "prompts": 2, "groups": [{}]}', "total is not what"),
        ("samples/rollout/000004/rollout.json", '{"iteration": 4, "prompts": 2, "groups": 7}', "without iteration"),
    ],
)
def test_a_damaged_file_is_left_out_and_told(tmp_path, name, text, note):
    run = write_run(tmp_path / "run")
    add_rollout(run, 4)
    (run / name).write_text(text)
    page = page_of(run)
    assert note in page.text
    assert str(run) not in page.text.partition("on the run folder")[2].partition("Curves")[0]
    assert page.data["curves"]["groups"]


def test_reading_writes_nothing_and_takes_no_lock(tmp_path):
    run = write_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert read_record(run).packaged == "scenes/mix-grpo"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_folder_that_is_no_run_is_refused_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no run folder .*name runs/NAME"):
        read_record(tmp_path)
    end = command("report", str(tmp_path / "nowhere"))
    assert end.code == 2
    assert "no run folder" in end.err
    assert end.err.count("\n") == 1


def test_a_run_under_way_tells_the_time_left(tmp_path):
    judged = [evaluation_line(0, [0.0, 1.0])]
    lines = [metrics_line(1), metrics_line(2)]
    run = write_run(tmp_path / "run", status="running", metrics=lines, evaluations=judged)
    cards = cards_of(run)
    assert "2 of 4 iterations" in cards["Running"]
    assert "10 s an iteration, 20 s so far. About 20 s left" in cards["Running"]
    os.utime(run / "metrics.jsonl", (1, 1))
    os.utime(run / "evaluations.jsonl", (1, 1))
    assert "it may have been killed" in cards_of(run)["Running"]


def test_a_run_that_ends_by_model_evaluations_estimates_its_length(tmp_path):
    run = write_run(tmp_path / "run", status="running")
    text = (run / "run.toml").read_text().replace("evaluations = 0", "evaluations = 800")
    (run / "run.toml").write_text(text.replace("iterations = 4", "iterations = 100"))
    assert "4 of 8 iterations" in cards_of(run)["Running"]


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ended_early_tells_why(tmp_path, status):
    cards = cards_of(write_run(tmp_path / "run", status=status, reason="out of paint"))
    assert f"{status.capitalize()}: out of paint" in cards[status.capitalize()]


def test_the_score_is_told_with_its_paired_interval_and_a_verdict(tmp_path):
    better = cards_of(write_run(tmp_path / "better"))["Held-out score"]
    assert re.search(r"100\.0% \+50\.0 points \[\+32\.\d, \+67\.\d\]", better)
    assert "Better than the base, 50.0%" in better
    same = [evaluation_line(0, [0, 1] * 8), evaluation_line(4, [1, 0] * 8)]
    assert "Not yet distinguishable" in cards_of(write_run(tmp_path / "same", evaluations=same))["Held-out score"]
    worse = [evaluation_line(0, [1] * 15 + [0]), evaluation_line(2, [0] * 15 + [1])]
    text = cards_of(write_run(tmp_path / "worse", evaluations=worse))["Held-out score"]
    assert "Worse than the base, 93.8%" in text
    assert "Best so far: 93.8% at the base." in text
    still = cards_of(write_run(tmp_path / "still", evaluations=[worse[0], worse[0] | {"iteration": 2}]))
    assert "No prompt has changed from the base" in still["Held-out score"]


def test_the_alarm_of_hacking_is_told_with_what_to_do(tmp_path):
    lines = [evaluation_line(0, [0.0, 1.0]), evaluation_line(4, [1.0, 1.0], hacking=ALARM)]
    run = write_run(tmp_path / "run", evaluations=lines, hacking=ALARM | {"best_before": 2})
    card = cards_of(run)["Reward hacking"]
    assert card.startswith("alarm since iteration 4")
    assert "background 0.01 -> 0.09 (x 9.00)" in card
    assert "The best before it is iteration 2" in card
    assert "hold the model closer to the base" in card
    assert cards_of(write_run(tmp_path / "quiet"))["Reward hacking"].startswith("no alarm")


def test_a_supervised_run_has_its_loss(tmp_path):
    lines = [{"iteration": n, "sft/denoising": 4.0 / n, "cost/model_evaluations": n} for n in (1, 2)]
    judged = [evaluation_line(n, [0.0, 0.0], denoising_loss=5.0 - n) for n in (0, 2)]
    run = write_run(tmp_path / "run", stage="sft", recipe="sft", metrics=lines, evaluations=judged)
    cards, page = cards_of(run), page_of(run)
    assert cards["Training"].startswith("loss 2 ")
    assert "4 at iteration 1" in cards["Training"]
    assert "Reward hacking" not in cards
    assert "Supervised stage, recipe scenes/sft" in page.text
    assert page.data["curves"]["top"]["series"][0]["y"] == [5.0, 3.0]


def test_a_run_on_prompts_alone_is_judged_by_its_reward(tmp_path):
    lines = [evaluation_line(n, [0.1 * n, 0.2 + 0.1 * n, 0.3], "reward", **{"reward/own": 0.5}) for n in (0, 2, 4)]
    for line in lines:
        line["by_kind"] = {"": {"prompts": 3, "reward": line["reward"]}}
    page = page_of(write_run(tmp_path / "run", evaluations=lines))
    assert "weighted reward on the held-out prompts" in page.text
    assert page.data["map"]["binary"] is False
    assert page.data["curves"]["top"]["title"] == "Held-out score: reward"


def test_curves_have_at_most_two_thousand_points_which_are_means(tmp_path):
    lines = [metrics_line(n, **{"policy/kl": float(n % 2), "policy/grad_norm": float("nan")}) for n in range(1, 4003)]
    data = curve_data(RunRecord("run", "run", metrics=lines))
    charts = {chart["title"]: chart for group in data["groups"] for chart in group["charts"]}
    kl = charts["KL to the reference"]["series"][0]
    assert len(kl["y"]) == len(data["tables"]["metrics"]["iteration"]) == 1334
    assert set(kl["y"]) == {0.666667, 0.333333}
    assert data["tables"]["metrics"]["evaluations"][0] == 300
    assert data["tables"]["metrics"]["seconds"][:2] == [30.0, 60.0]
    assert charts["Reward checker"]["series"][0]["low"][0] == pytest.approx(0.42)
    assert "Gradient norm" not in charts


def test_what_is_always_zero_is_named_and_other_numbers_are_drawn(tmp_path):
    lines = [metrics_line(n, **{"policy/clip_fraction": 0.0, "mine/own": 1.0, "policy/kl/3": 1.0}) for n in (1, 2)]
    groups = {group["title"]: group for group in curve_data(RunRecord("run", "run", metrics=lines))["groups"]}
    assert groups["Policy"]["zeros"] == ["Clip share"]
    assert [chart["title"] for chart in groups["Other numbers"]["charts"]] == ["mine/own"]


def test_a_measure_of_a_data_source_is_drawn():
    lines = [evaluation_line(n, [0.0, 1.0], tidiness=0.5, tuned_share=1.0, background=0.1) for n in (0, 2)]
    groups = {group["title"]: group for group in curve_data(RunRecord("run", "run", evaluations=lines))["groups"]}
    assert [chart["title"] for chart in groups["What no reward sees"]["charts"]] == ["Background", "tidiness"]


def test_no_number_of_the_page_is_nan(tmp_path):
    lines = [evaluation_line(0, [0.0, 1.0]), evaluation_line(4, [float("nan"), 1.0]) | {"strict": float("inf")}]
    page = page_of(write_run(tmp_path / "run", evaluations=lines))
    assert None in page.data["map"]["rows"][0]


def test_the_map_counts_gains_and_losses_and_thins_columns():
    lines = [evaluation_line(n, [n % 2, 1.0, 0.0, n / 300]) for n in range(301)]
    shown = score_map(RunRecord("run", "run", evaluations=lines))
    assert shown.counts == {"gained": 1, "lost": 0, "prompts": 4}
    assert len(shown.data["iterations"]) == 200
    assert (shown.data["iterations"][0], shown.data["iterations"][-1], shown.data["left_out"]) == (0, 300, 101)
    assert [(change.number, change.change) for change in shown.gains] == [(4, "+100.0")]
    assert shown.losses == []
    assert shown.first == "the base"
    assert score_map(RunRecord("run", "run", evaluations=lines[20:])).first == "iteration 20"
    assert shown.data["binary"] is False


def test_differences_from_the_packaged_recipe_are_listed(tmp_path):
    record = read_record(write_run(tmp_path / "run"))
    assert ("train.iterations", 320, 4) in record.changes
    assert {key for key, _, _ in record.changes} == {"train.iterations", "evaluate.every"}
    own = write_run(tmp_path / "own", command=["grpaint", "train", "--name", "x", "mine.toml"])
    assert read_record(own).packaged is None


def test_commands_quote_foreign_names_and_captions(tmp_path):
    run = write_run(tmp_path / "a; rm -rf ~")
    add_pictures(run, [0], ["it's `here`"])
    commands = dict(next_commands(read_record(run)))
    assert commands["Sample"] == f"grpaint sample '{run}' 'it'\"'\"'s `here`'"
    assert commands["Resume"].endswith("'--name=a; rm -rf ~' --resume --set train.iterations=8")
    assert next_commands(RunRecord("x", "runs/a\nb")) == []
    option = write_run(tmp_path / "option")
    add_pictures(option, [0], ["--out=elsewhere"])
    assert "--out" not in str(next_commands(read_record(option)))
    train = {"iterations": 100, "evaluations": 800}
    limited = RunRecord("x", "runs/x", {"status": "finished"}, {"train": train}, iterations=8)
    assert dict(next_commands(limited))["Resume"].endswith("--set train.iterations=200 --set train.evaluations=1600")
    hidden = write_run(tmp_path / "hidden")
    add_pictures(hidden, [0], ["\x1b]0;mine\x07"])
    assert "\x1b" not in str(next_commands(read_record(hidden)))


def test_durations_read_as_a_person_says_them():
    assert [duration(s) for s in (0.25, 42, 3599, 4 * 3600 + 60, 50 * 3600)] == [
        "0.2 s", "42 s", "1 h 0 min", "4 h 1 min", "2 d 2 h",
    ]  # fmt: skip


def test_a_single_file_holds_small_pictures_as_they_are(tmp_path):
    run = write_run(tmp_path / "run")
    add_pictures(run, [0, 2, 4])
    add_rollout(run, 4)
    end = command("report", str(run), "--single", str(tmp_path / "one.html"))
    assert end.code == 0, end.err
    assert end.out.splitlines()[-1].startswith((tmp_path / "one.html").as_uri())
    assert "To stay within" not in end.out
    assert not (run / "report.html").exists()
    page = _Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    shown = page.data["film"]["times"][2]["files"][1].removeprefix("data:image/webp;base64,")
    assert base64.b64decode(shown) == (run / held_out_file(4, 1)).read_bytes()
    assert all(member["file"].startswith("data:image/webp") for g in page.data["groups"] for member in g["members"])


def test_a_single_file_of_photographs_fits_by_their_quality(tmp_path):
    run = write_run(tmp_path / "run")
    add_pictures(run, range(0, 100, 2), [f"a photograph {n}" for n in range(8)], side=256)
    as_they_are = sum(file.stat().st_size for file in run.rglob("*.webp"))
    lowered = write_single(run, tmp_path / "one.html")
    assert as_they_are > MOST_BYTES
    assert re.fullmatch(r"To stay within 6 MB pictures of more than 64 pixels have quality (75|60|45)\.", lowered)
    assert MOST_BYTES / 2 < (tmp_path / "one.html").stat().st_size <= MOST_BYTES
    page = _Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert all(file for time in page.data["film"]["times"] for file in time["files"])


def test_a_single_file_leaves_out_times_where_quality_is_not_enough(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    add_pictures(run, range(0, 16, 2), side=64)
    room = len(run_page(read_record(run), {}).encode()) + 8 * (run / held_out_file(0, 0)).stat().st_size
    monkeypatch.setattr("grpaint.run.single_page.MOST_BYTES", room)
    assert "pictures of 2 of 8 times are shown" in write_single(run, tmp_path / "one.html")
    assert (tmp_path / "one.html").stat().st_size <= room
    page = _Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert [time["iteration"] for time in page.data["film"]["times"]] == [0, 14]


def test_the_command_writes_the_page_and_prints_its_address(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    end = command("report", "one")
    assert end.out.startswith((tmp_path / "runs/one/report.html").as_uri())
    assert (tmp_path / "runs/one/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


ODD = (None, "text", -1, 10**307, 1e308, float("nan"), float("inf"), [], [1, 2], {}, {"a": 1}, True)
FILES = ("run.json", "metrics.jsonl", "evaluations.jsonl", "pictures.jsonl", "samples/rollout/000004/rollout.json")


@pytest.mark.parametrize("name", FILES)
def test_any_value_in_a_file_gives_a_page(tmp_path, name):
    run = write_run(tmp_path / "run", hacking=ALARM | {"best_before": 2})
    add_pictures(run, [0, 2, 4])
    add_rollout(run, 4)
    whole = (run / name).read_text().splitlines()
    lines = [json.loads(line) for line in (whole if name.endswith(".jsonl") else ["".join(whole)])]
    for key in [*lines[-1], "train/nonfinite_updates", "time/reward_wait_s", "reward/checker_interval", "processes"]:
        for odd in ODD:
            changed = [json.dumps(line) for line in (*lines[:-1], lines[-1] | {key: odd})]
            (run / name).write_text("\n".join(changed) + "\n")
            assert "What to do with it" in run_page(read_record(run)), (key, odd)


@pytest.mark.parametrize("text", ["train = 3", "stage = [1]", "evaluate = 'x'", "[train]\niterations = 'x'", "x = nan"])
def test_any_settings_give_a_page(tmp_path, text):
    run = write_run(tmp_path / "run", status="running")
    (run / "run.toml").write_text(text)
    assert page_of(run).data["curves"]["groups"]
