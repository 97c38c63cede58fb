"""``grpaint view`` in a browser: the table, runs side by side, and following what is under way."""

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Error, Page, expect

import tiny_runs
from grpaint.run.lines import append_line
from open_pages import OpenPage, assert_fits, assert_foreign_is_text
from view_runs import NAME, TOKEN, make_runs

LAYOUTS = [
    (1440, "light"),
    (390, "dark"),
    *(pytest.param(*layout, marks=pytest.mark.slow) for layout in ((1440, "dark"), (390, "light"))),
]
COMPARED = f"compare?run=first&run=second&run={quote(NAME, safe='')}"
POLL_MS = 2000  # as live.js


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_network: None) -> Path:
    return make_runs(tmp_path_factory.mktemp("view"))


class Served:
    """``grpaint view`` as a process of its own, which may be killed and started again."""

    def __init__(self, runs: Path) -> None:
        self._runs, self.port = runs, 0
        (runs.parent / "token").write_text(TOKEN)
        self.start()

    def start(self) -> None:
        token = str(self._runs.parent / "token")
        self.process = tiny_runs.process("view", str(self._runs), "--port", str(self.port), "--token-file", token)
        self.address = self.process.stdout.readline().strip()
        self.port = int(re.search(r":(\d+)/", self.address)[1])
        assert self.address == f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def served(runs: Path) -> Iterator[Served]:
    """A server for all tests, which ends at Ctrl-C without a word, a second one included."""
    served = Served(runs)
    yield served
    served.process.send_signal(signal.SIGINT)
    served.process.send_signal(signal.SIGINT)
    _, err = served.process.communicate(timeout=60)
    assert (served.process.returncode, err) == (0, "")


@pytest.fixture
def site(served: Served) -> str:
    return served.address


def _names(page: Page) -> list[str]:
    return page.locator("#rows .at-name").all_inner_texts()


def _until(page: Page, condition: str) -> None:
    """Wait for a condition; Playwright's own way evaluates a text, which the pages' policy forbids."""
    for _ in range(600):
        with contextlib.suppress(Error):  # the page is just loading again
            if page.evaluate(condition):
                return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {condition}")


@pytest.mark.parametrize(("width", "scheme"), LAYOUTS)
def test_the_table_fits_and_everyone_can_read_it(width, scheme, site, page_of, assert_accessible):
    page = page_of(site, width=width, scheme=scheme)
    expect(page.locator("#rows tr")).to_have_count(6)
    assert_fits(page)
    assert NAME in _names(page)
    assert page.locator("[onerror], img[src='x']").count() == 0
    assert_accessible(page)


def test_the_table_is_sorted_and_filtered_and_the_address_keeps_it(site, page_of):
    page = page_of(site)
    page.get_by_role("button", name="Run", exact=True).click()
    assert _names(page) == [NAME, "failed", "first", "hacked", "killed", "second"]
    page.get_by_role("button", name="Score", exact=True).click()
    assert _names(page)[0] == "second"
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Score", exact=True).click()
    assert _names(page)[-1] == "second"
    page.locator("#states").get_by_role("button", name="Failed").click()
    assert _names(page) == ["failed"]
    page.locator("#states").get_by_role("button", name="Alarm").click()
    assert _names(page) == ["hacked"]
    page.locator("#states").get_by_role("button", name="All").click()
    page.get_by_role("searchbox").fill("flow IRS")
    assert _names(page) == ["first"]
    expect(page.locator("#count")).to_have_text("1 of 6 runs")
    page.reload()
    assert _names(page) == ["first"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_runs_are_chosen_and_set_side_by_side(site, page_of):
    page = page_of(site)
    button = page.locator("#compare")
    expect(button).to_be_disabled()
    page.get_by_role("checkbox", name="Compare second").check()
    expect(button).to_be_disabled()
    page.get_by_role("checkbox", name=f"Compare {NAME}").check()
    page.wait_for_timeout(POLL_MS + 500)  # a poll changes nothing of the choice
    button.click()
    expect(page.locator("#scores tbody tr")).to_have_count(2)
    assert page.locator("#scores tbody th").all_inner_texts() == ["second", NAME]
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("#rows tr")).to_have_count(6)


@pytest.mark.parametrize(("width", "scheme"), LAYOUTS)
def test_side_by_side_fits_and_everyone_can_read_it(width, scheme, site, page_of, assert_accessible):
    page = page_of(site + COMPARED, width=width, scheme=scheme)
    for chart in page.locator("#curve-groups .chart").all()[:6]:
        chart.scroll_into_view_if_needed()
        chart.locator("canvas").wait_for()
    assert_fits(page)
    assert_foreign_is_text(page)
    assert_accessible(page)
    page.locator("#film .shot").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    assert_fits(page)
    assert_accessible(page)


def test_curves_are_on_one_chart_and_pictures_are_aligned(site, page_of):
    page = page_of(site + COMPARED)
    legend = page.locator("#score-chart .u-legend")
    for name in ("first", "second", NAME):
        expect(legend).to_contain_text(name)
    assert page.locator("#score-chart canvas").count() == 1
    page.locator("#axis").select_option("evaluations")
    expect(legend).to_contain_text("model evaluations")
    page.locator("#film").scroll_into_view_if_needed()
    assert page.locator("#film tbody tr").count() == 3
    _until(page, "[...document.querySelectorAll('#film img')].every(one => one.complete && one.naturalWidth)")

    def files() -> list[list[str]]:
        rows = page.locator("#film tbody tr").all()
        return [
            [img.get_attribute("src").partition("/samples/")[2] for img in row.locator("img").all()] for row in rows
        ]

    def expected(iteration: int) -> list[list[str]]:
        base, now = (f"held-out/{number:06d}" for number in (0, iteration))  # the base is one for all
        return [[f"{base}/{row:02d}.webp"] + [f"{now}/{row:02d}.webp"] * 3 for row in range(3)]

    assert files() == expected(6)
    page.locator("#time").focus()
    page.keyboard.press("ArrowLeft")
    assert files() == expected(4)
    page.locator("#film .shot").nth(2).click()
    expect(page.locator("#viewer-place")).to_have_text("second, iteration 4")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-place")).to_have_text(f"{NAME}, iteration 4")
    page.keyboard.press("Escape")
    rows = page.locator("#differing tbody tr").all_inner_texts()
    assert len(rows) == 1
    assert rows[0].startswith("train.learning_rate")


def test_the_page_of_a_run_has_its_pictures(site, page_of, assert_accessible):
    page = page_of(site)
    page.get_by_role("link", name=NAME).click()
    expect(page.locator("h1")).to_have_text(NAME)
    assert_foreign_is_text(page)
    page.locator("#film").scroll_into_view_if_needed()
    _until(page, "document.querySelector('#film td.now img').naturalWidth > 0")
    assert_fits(page)
    assert_accessible(page)


def test_a_run_under_way_is_followed_by_its_page_the_table_and_side_by_side(runs, site, page_of):
    sets = [*tiny_runs.TINY, tiny_runs.REWARD, "train.iterations=24", "evaluate.pictures=2", "checkpoint.every=12"]
    with contextlib.chdir(runs.parent):
        process = tiny_runs.process("train", "flow-grpo-fast", "--name", "going", sets=sets)
    lines = runs / "going/metrics.jsonl"
    while not lines.is_file() or lines.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # until the pages are open
    table = page_of(site)
    row = table.locator("#rows tr", has_text="going")
    row.wait_for()
    page = page_of(f"{site}run/going/")
    pair = page_of(f"{site}compare?run=first&run=going")
    page.locator("#film").wait_for()  # the page comes again by itself when there are pictures
    _until(page, "Number(byId('time').max) > 0")
    times = int(page.locator("#time").get_attribute("max"))
    done = page.locator("#cards article").first.locator(".headline")
    expect(page.locator("#status")).to_have_text("Running")
    page.locator("#film").scroll_into_view_if_needed()
    process.send_signal(signal.SIGCONT)
    _until(page, f"Number(byId('time').max) > {times}")
    assert process.wait(300) == 0, process.communicate()
    expect(page.locator("#status")).to_have_text("Finished")
    expect(done).to_have_text("24 of 24 iterations")
    expect(page.locator("#time-name")).to_have_text("24")
    assert page.title() == "going: finished"
    expect(row.locator(".state")).to_have_text("Finished")
    expect(row.locator(".at-done")).to_have_text("24 of 24")
    expect(pair.locator("#scores tbody tr").nth(1).locator(".state")).to_have_text("Finished", timeout=30_000)
    ends = "drawnCharts.get(byId('score-chart')).plot.scales.x.max"
    assert page.evaluate(ends) == 24
    assert pair.evaluate(ends) == 24


def test_a_hidden_tab_asks_for_nothing(site, browser):
    opened = OpenPage(browser, site)
    hide = """hidden => {
      Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    opened.page.wait_for_timeout(POLL_MS + 1000)
    assert any(url.endswith("/runs.json") for url in opened.requests)
    opened.page.evaluate(hide, True)
    opened.page.wait_for_timeout(500)  # for an answer under way
    count = len(opened.requests)
    opened.page.wait_for_timeout(2 * POLL_MS + 500)
    assert len(opened.requests) == count
    with opened.page.expect_response("**/runs.json") as answer:
        opened.page.evaluate(hide, False)
    assert answer.value.status == 304
    opened.close()
    assert opened.errors == []


def test_silent_clients_do_not_keep_a_browser_out(runs, site, served, page_of):
    clients = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(200)]
    for client in clients[:8]:
        client.sendall(f"GET /{TOKEN}/run/first/ HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())  # and is never read
    for client in clients[40:]:
        client.close()
    page = page_of(site)
    expect(page.locator("#rows tr").first).to_be_visible()
    for client in clients[:40]:
        client.close()
    assert json.loads((runs / "first/run.json").read_text())["status"] == "finished"


def test_eight_tabs_go_on_when_the_server_is_killed_and_started_again(runs, served, browser):
    opened = OpenPage(browser, served.address)
    tabs = [opened.page] + [opened.page.context.new_page() for _ in range(7)]
    for place, tab in enumerate(tabs[1:]):
        tab.goto(served.address + ["run/second/", COMPARED, ""][place % 3])
    for tab in tabs:
        tab.locator(".state, #status").first.wait_for()
    served.kill()
    for tab in tabs:
        expect(tab.locator("#live")).to_contain_text("The server does not answer", timeout=30_000)
    line = tiny_runs.lines(runs / "second/metrics.jsonl")[-1]
    append_line(runs / "second/metrics.jsonl", line | {"iteration": line["iteration"] + 1})
    before = served.address
    served.start()
    assert served.address == before
    for tab in tabs:
        expect(tab.locator("#live")).to_be_hidden(timeout=60_000)
    expect(tabs[0].locator("#rows tr", has_text="second").locator(".at-done")).to_contain_text("7 of")
    expect(tabs[1].locator("#cards .headline").first).to_contain_text("7 of", timeout=30_000)
    opened.close()
    assert opened.foreign_requests() == []
