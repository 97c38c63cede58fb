"""The pages of a comparison and of an evaluation, and the SVG files: foreign text stays text, and bytes repeat."""

import html.parser
import json
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import torch

from grpaint.report import svg
from grpaint.report.method_summary import COSTS, summarise_methods
from grpaint.report.pages.comparison import comparison_page
from grpaint.report.pages.evaluation import evaluation_page
from grpaint.report.pages.template import _static

MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\" ' & $x$ {{ 7 * 7 }} \U0001f3a8"
PICTURE = "data:image/png;base64,AA=="


class Page(html.parser.HTMLParser):
    """The elements of a page with the names of their attributes, and its visible texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, [name for name, _ in attributes]))
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.texts += [value for name, value in attributes if name in ("alt", "aria-label")]

    def handle_data(self, data):
        if self.elements[-1:] and self.elements[-1][0] not in ("script", "style"):
            self.texts.append(data.replace('\\"', '"'))  # as JSON writes it


def records(method, seeds=(0, 1), score="strict"):
    """Records of two evaluations for each seed, as a comparison keeps them."""
    costs = [{"iteration": at, "evaluations": 1000 * at, "cpu_s": 1.0 * at, "reward_calls": 10 * at} for at in (0, 1)]
    return [
        {"method": method, "seed": seed, "pictures": PICTURE, "evaluations": 1000, "cpu_s": 1.0, "base_guided": None}
        | {
            "scores": [
                line | {"score": score, score: value} for line, value in zip(costs, (0.4, 0.5 + seed / 10), strict=True)
            ]
        }
        for seed in seeds
    ]


def comparison(method):
    return comparison_page([*records(method), *records("b")], title=method, baseline=method, missing=[method])


def evaluation(source):
    value = {"value": 0.5, "interval": [0.4, 0.6], "images": 3}
    measured = {"values": {"base": value, source: value}, "differences": {source: value}}
    entry = {"measure": "soft", "protocol": "reconstruction", "better": "higher", "card": {"metric": source}}
    alarm = {"reward": {"base": 0.5, "now": 0.6}, "judges": {"background": {"base": 0.1, "now": 0.3, "ratio": 3.0}}}
    result = {"prompts": 3, "strength": 0.6, "first": "base", "sources": {"base": {}, source: {"source": source}}}
    result |= {"measures": [entry | measured | {"by_category": {source: measured}}], "hacking": {source: alarm}}
    images = {"base": torch.zeros(1, 3, 4, 4), source: torch.ones(1, 3, 4, 4)}
    return evaluation_page(result, {"reconstruction": images}, [source])


@pytest.mark.parametrize("make", [comparison, evaluation])
def test_foreign_names_and_captions_are_text(make):
    plain, foreign = Page(make("plain")), Page(make(MARKUP))
    assert foreign.elements == plain.elements
    assert not any("style" in attributes for _, attributes in foreign.elements)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in foreign.sources)
    assert sum(MARKUP in text for text in foreign.texts) == sum("plain" in text for text in plain.texts) > 5


def test_pictures_of_an_evaluation_have_source_and_caption_as_their_text():
    texts = Page(evaluation("plain")).texts
    assert {"base: plain", "plain: plain"} <= set(texts)
    for text in ("Reconstruction from strength 0.6", "[0.4, 0.6]", "\u0394 +0.5 [0.4, 0.6]", "plain (3)"):
        assert text in texts
    assert any(text.startswith("plain: reward hacking? against base") for text in texts)


def test_an_evaluation_of_one_model_has_no_differences():
    value = {"value": 1234.5, "images": 3}
    measures = [{"measure": "fid", "protocol": "free generation", "better": "lower", "card": {}}]
    measures[0] |= {"values": {"base": value}, "differences": {}}
    result = {"prompts": 3, "strength": 0.6, "first": "base", "sources": {"base": {}}, "hacking": {}}
    page = Page(evaluation_page(result | {"measures": measures}, {}, []))
    assert {"fid \u2193", "1234"} <= set(page.texts)
    assert "By category" not in page.texts


def test_a_comparison_tells_a_baseline_without_a_run_and_a_score_of_its_own():
    text = comparison_page(records("a", score="reward"), title="t", baseline="b", missing=[])
    assert "The baseline b has no finished run yet." in text
    assert "held-out reward, without guidance. The base scores 0.4. " in text
    assert "Not finished yet" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [chart["percent"] for chart in data["charts"]] == [False] * len(COSTS)


def test_a_score_that_is_no_number_leaves_the_data_of_a_page_json():
    damaged = records("a")
    damaged[0]["scores"][1]["strict"] = float("nan")
    text = comparison_page(damaged, title="t", baseline="a", missing=[])
    data = json.loads(
        re.search(r'id="data">(.*?)</script>', text)[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert None in data["charts"][0]["series"][0]["y"]


@pytest.mark.parametrize("name", [MARKUP, "_hidden", "a\x0b\udcff"])
def test_an_svg_file_has_the_same_bytes_each_time_whatever_the_user_has_set(name):
    summaries = summarise_methods([*records(name), *records("b", (0,))])
    first = svg.comparison_svg(summaries, "cpu_s")
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": None, "axes.facecolor": "red", "font.size": 20}):
        before = dict(mpl.rcParams)
        assert svg.comparison_svg(summaries, "cpu_s") == first
        assert dict(mpl.rcParams) == before
    texts = [element.text for element in ElementTree.fromstring(first).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-2:] == [name.replace("\x0b", "\\x0b").replace("\udcff", "\\udcff"), "b"]
    assert {"processor seconds, training", "held-out strict", "20%"} <= set(texts)
    assert "<dc:date>" not in first


def test_svg_files_have_the_colours_of_the_pages():
    light = _static("style.css").partition("prefers-color-scheme")[0]
    assert tuple(re.findall(r"--series-\d+: (#\w+)", light)) == svg.COLOURS
