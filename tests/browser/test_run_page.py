"""The page of a run in a browser: what moves by mouse and by key, and that it keeps to itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

import tiny_runs
from grpaint.run.page import write_page
from grpaint.run.pictures import ROLLOUT_FILE
from open_pages import FOREIGN, assert_fits, assert_foreign_is_text

NAME = "🎨 <b>run"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, small_network: None) -> Iterator[Path]:
    """The page of a short run, whose first caption and name are foreign texts."""
    with tiny_runs.folder(tmp_path_factory.mktemp("run")) as here:
        sets = [*tiny_runs.TINY, tiny_runs.REWARD, "train.iterations=6", "evaluate.pictures=6"]
        done = tiny_runs.command("train", "flow-grpo-fast", "--name", "page", sets=sets)
        assert done.code == 0, done.err
        run = here / "runs/page"
        lines = tiny_runs.lines(run / "pictures.jsonl")
        for line in lines:
            line["captions"][0] = FOREIGN
            line["scores"]["soft"] = [line["iteration"] / 10 + place / 100 for place in range(6)]
        _write(run / "pictures.jsonl", lines)
        evaluations = tiny_runs.lines(run / "evaluations.jsonl")
        for line in evaluations:  # of six prompts the fourth loses, the second gains
            line["strict_by_prompt"] = (
                [0.0, 1.0, 0.0, 0.0, 0.0, 0.0] if line["iteration"] else [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
            )
        _write(run / "evaluations.jsonl", evaluations)
        (rollout,) = run.glob(f"samples/rollout/*/{ROLLOUT_FILE}")
        record = json.loads(rollout.read_text())
        record["groups"][0]["caption"] = FOREIGN
        record["groups"][1]["advantage"] = [0.0] * 4
        rollout.write_text(json.dumps(record))
        yield write_page(shutil.move(run, here / "runs" / NAME))


def _write(file: Path, lines: list[dict]) -> None:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _shown(page: Page) -> list[str]:
    """The pictures of the selected time, one a row."""
    return [picture.get_attribute("src") or "" for picture in page.locator("#film td.now img").all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_fits_and_everyone_can_read_it(file, width, scheme, page_of, assert_accessible):
    page = page_of(file, width=width, scheme=scheme)
    for chart in page.locator("#curve-groups .chart").all():
        chart.scroll_into_view_if_needed()  # which draws it
        chart.locator("canvas").wait_for()
    assert_fits(page)
    assert_foreign_is_text(page)
    assert page.locator("h1").inner_text() == NAME
    assert page.locator("h1 b").count() == 0
    assert_accessible(page)
    page.locator("#film td.now .shot").first.click()
    assert page.locator("#viewer").is_visible()
    assert_fits(page)
    assert_accessible(page)


@pytest.mark.parametrize("width", [1440, 390])  # a column of each time, and one column whose pictures change
def test_one_slider_and_the_arrow_keys_move_every_row(file, width, page_of):
    page = page_of(file, width=width)
    last = _shown(page)
    assert len(set(last)) == 6
    assert all("/000006/" in source for source in last)
    slider = page.locator("#time")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    expect(page.locator("#time-name")).to_have_text("2")
    assert _shown(page) == [source.replace("/000006/", "/000002/") for source in last]
    page.locator("h1").click()
    for key, iteration in (("ArrowRight", 4), ("ArrowRight", 6), ("ArrowLeft", 4), ("Home", 2), ("End", 6)):
        page.keyboard.press(key)
        expect(page.locator("#time-name")).to_have_text(str(iteration))
        assert _shown(page) == [source.replace("/000006/", f"/{iteration:06d}/") for source in last], key
    for picture in page.locator("#film img").all():
        picture.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('#film img')].every(one => one.complete && one.naturalWidth)")


def test_keys_blink_and_show_the_difference(file, page_of):
    page = page_of(file)
    picture = page.locator("#film td.now img").first
    picture.scroll_into_view_if_needed()
    picture.evaluate("one => one.decode()")
    before = picture.screenshot()
    page.keyboard.down("b")
    base = picture.screenshot()
    assert base != before
    page.keyboard.up("b")
    assert picture.screenshot() == before
    page.keyboard.press("d")
    assert picture.screenshot() not in (before, base)
    assert page.locator(".difference-toggle").first.get_attribute("aria-pressed") == "true"
    page.keyboard.press("d")
    assert picture.screenshot() == before


def test_a_picture_opens_large_and_has_the_same_keys(file, page_of):
    page = page_of(file)
    page.locator("#film td.now .shot").first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    expect(page.locator("#viewer-caption")).to_have_text(FOREIGN)
    picture = viewer.locator("img")
    assert "/000006/00.webp" in picture.get_attribute("src")
    page.keyboard.press("ArrowLeft")
    assert "/000004/00.webp" in picture.get_attribute("src")
    page.keyboard.press("ArrowDown")
    assert "/000004/01.webp" in picture.get_attribute("src")
    row = viewer.locator("tbody tr", has_text="soft")
    assert row.locator("td").all_inner_texts() == ["0.41", "0.01", "+0.4"]
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(page.locator("#time-name")).to_have_text("4")


def test_a_group_unfolds_from_best_to_worst(file, page_of):
    page = page_of(file)
    group = page.locator("#groups article").first
    assert group.locator(".rank").all_inner_texts() == ["best", "median", "worst"]
    group.get_by_role("button", name="All 4").click()
    totals = [float(one.inner_text().split()[1]) for one in group.locator(".worth").all()]
    assert len(totals) == 4
    assert totals == sorted(totals, reverse=True)
    assert page.locator("#groups article.flat").count() == 1
    assert "No spread" in page.locator("#groups article.flat").inner_text()


def test_the_map_is_sorted_by_a_button(file, page_of):
    page = page_of(file)
    canvas = page.locator("#map")
    for order, first in (("gain", "Prompt 2"), ("kind", "Kind "), ("number", "Prompt 1"), ("loss", "Prompt 4")):
        button = page.get_by_role("button", name=order, exact=True)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert f"sorted by {order}" in canvas.get_attribute("aria-label")
        page.mouse.move(0, 0)
        canvas.hover(position={"x": 5, "y": 5})
        assert page.locator("#map-text").inner_text().startswith(first)
    assert "iteration 0: 1" in page.locator("#map-text").inner_text()


def test_a_chart_zooms_by_dragging_and_has_a_log_scale(file, page_of):
    page = page_of(file)
    chart = page.locator("#curve-groups .chart").first
    chart.scroll_into_view_if_needed()
    over = chart.locator(".u-over")
    assert _scale(chart) == [0, 6, 1]
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 50, steps=4)
    page.mouse.up()
    assert _scale(chart) == [pytest.approx(3, abs=0.1), pytest.approx(5.4, abs=0.1), 1]
    toggle = chart.get_by_role("button", name="log scale")
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "true"
    page.emulate_media(color_scheme="dark")  # draws it again
    assert _scale(chart) == [pytest.approx(3, abs=0.1), pytest.approx(5.4, abs=0.1), 3]
    over.dblclick()
    assert _scale(chart) == [0, 6, 3]
    page.locator("#axis").select_option("seconds")
    expect(chart.locator(".u-legend")).to_contain_text("seconds")
    assert chart.locator("canvas").count() == 1


def _scale(chart: Locator) -> list[float]:
    """The ends of a chart's x axis, and uPlot's name of its y axis: 1 linear, 3 logarithmic."""
    chart.page.wait_for_timeout(100)  # uPlot takes a zoom in at the next turn
    return chart.evaluate("place => (({x, y}) => [x.min, x.max, y.distr])(drawnCharts.get(place).plot.scales)")


@pytest.mark.parametrize(
    "absent",
    [("pictures.jsonl", "samples"), ("evaluations.jsonl", "metrics.jsonl"), ("run.json", "run.toml", "samples")],
)
def test_a_run_that_lacks_files_has_a_page_without_faults(absent, file, page_of, tmp_path):
    run = shutil.copytree(file.parent, tmp_path / "run", ignore=shutil.ignore_patterns(*absent, "checkpoints"))
    page = page_of(write_page(run))
    expect(page.locator("h1")).to_have_text("run")
    assert page.locator("#film").count() == ("samples" not in absent)
    assert_fits(page)


def test_one_file_alone_has_its_pictures(file, page_of, tmp_path):
    done = tiny_runs.command("report", str(file.parent), "--single", str(tmp_path / "alone.html"))
    assert done.code == 0, done.err
    page = page_of(tmp_path / "alone.html")
    sources = _shown(page)
    assert len(set(sources)) == 6
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    page.locator("#film").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#film td.now img').naturalWidth > 0")
