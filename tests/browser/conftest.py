"""One browser for all tests: Debian's Chromium, driven by Playwright, and pages that must keep to themselves."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import playwright.sync_api as playwright
import pytest

from open_pages import OpenPage

NODE_PACKAGES = Path(__file__).parent / "node_modules"
ARGUMENTS = ("--disable-quic", "--disable-sync", "--disable-gpu")  # Playwright gives those against background requests

VIOLATIONS = """
axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], preload: false}).then(({violations}) =>
  violations.flatMap(({id, nodes}) => nodes.map(({html, failureSummary}) => `${id}: ${html}: ${failureSummary}`)))
"""


def _missing(what: str) -> None:
    """Skip, unless the tests must run: ``.ci/run`` sets GRPAINT_BROWSER_REQUIRED."""
    (pytest.fail if os.environ.get("GRPAINT_BROWSER_REQUIRED") else pytest.skip)(f"needs {what}")


@pytest.fixture(scope="package")
def browser() -> Iterator[playwright.Browser]:
    """Chromium, started once, and closed before tests that have an event loop of their own."""
    executable = shutil.which("chromium")
    if executable is None:
        _missing("chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page_of(browser: playwright.Browser) -> Iterator[Callable[..., playwright.Page]]:
    """Open a file or an address; at the end it must have raised no error and asked for nothing that is not its own."""
    opened: list[OpenPage] = []

    def open_page(place: Path | str, *, width: int = 1440, scheme: str = "light") -> playwright.Page:
        opened.append(OpenPage(browser, place, width=width, scheme=scheme))
        return opened[-1].page

    yield open_page
    for one in opened:
        one.close()
    for one in opened:
        assert one.errors == []
        assert one.foreign_requests() == []


@pytest.fixture
def assert_accessible() -> Callable[[playwright.Page], None]:
    """Assert that axe-core finds nothing against WCAG 2.1, levels A and AA, in a page as it is now."""
    source = NODE_PACKAGES / "axe-core/axe.min.js"
    if not source.exists():
        _missing("axe-core (npm ci --prefix tests/browser)")
    text = source.read_text()

    def check(page: playwright.Page) -> None:
        page.evaluate(text)  # by the protocol of the developer tools, which the page's own policy does not bind
        violations = page.evaluate(VIOLATIONS)
        assert not violations, "\n".join(violations)

    return check
