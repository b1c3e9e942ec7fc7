"""Chromium for the tests of the web page, and a tab that keeps what went wrong in it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_MS = 60_000
"""For what needs the stack: a bound for a test that hangs, not for how long anything takes."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser with a profile of its own; skips where none is installed."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium: scripts/chromium installs Debian's, as root")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page, and all complaints of it: of its console, of its scripts, and requests to anything but the stack."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Addresses whose refusal is part of a test: Chromium writes each into the console."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def open(self, view: str) -> None:
        """Go to a view and wait for its heading."""
        self.page.goto(f"{self.url}/#/{view}")
        self.page.locator("main h1").wait_for()

    @property
    def is_wider_than_the_screen(self) -> bool:
        """Whether one has to scroll sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def _heard(self, message: ConsoleMessage) -> None:
        at = message.location.get("url", "")
        if message.type in {"error", "warning"} and not any(path in at for path in self.expected):
            self.complaints.append(f"{message.type}: {message.text} ({at})")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.complaints.append(f"outside request: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 500:
            self.complaints.append(f"{response.status} from {response.url}")


@contextmanager
def open_tab(
    browser: Browser, url: str, *, key: str | None = None, width: int = 1280, scheme: str = "light"
) -> Iterator[Tab]:
    """A tab that shares nothing with others; what it complained of fails the test. `key` was given in it before."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
        accept_downloads=True,
    )
    if key is not None:
        context.add_init_script(f"sessionStorage.setItem('amoe-api-key', {json.dumps(key)})")
    tab = Tab(context.new_page(), url)
    yield tab
    context.close()
    assert tab.complaints == []
