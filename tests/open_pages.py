"""A page in the browser that writes down its errors and requests."""

from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page


class OpenPage:
    """A page in a window of its own: ``errors`` of scripts, console and dialogs, and the addresses of ``requests``.

    ``place`` is a file, or the address of a page of a server, below whose first part (the token) it must keep.
    """

    def __init__(
        self, browser: Browser, place: Path | str, *, width: int = 1440, scheme: str = "light", touch: bool = False
    ) -> None:
        address = place if isinstance(place, str) else place.resolve().as_uri()
        parts = 4 if isinstance(place, str) else -1
        self._own = "/".join(address.split("/")[:parts]) + "/"
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=touch, is_mobile=touch
        )
        self._context.set_default_timeout(20_000)
        self.page = self._context.new_page()
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(f"raised {error}"))
        self.page.on("dialog", self._on_dialog)
        self._context.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"console: {message.text} ({message.location['url']})")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def foreign_requests(self) -> list[str]:
        """What was asked for outside the file's folder or the server's token, data in the page itself apart."""
        return [url for url in self.requests if not url.startswith((self._own, "data:", "blob:"))]

    def close(self) -> None:
        """Close the window."""
        self._context.close()


FOREIGN = "<script>alert(1)</script><img src=x onerror=alert(2)>"  # a text that a run may bring


def assert_foreign_is_text(page: Page) -> None:
    """Assert that FOREIGN is on the page as a text, and nowhere as elements."""
    assert FOREIGN in page.locator("main, body").first.inner_text()
    assert page.locator("[onerror], img[src='x']").count() == 0


def assert_fits(page: Page) -> None:
    """Assert that the page is no wider than its window."""
    width, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
