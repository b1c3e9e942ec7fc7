"""The web page as people meet it: every view loaded and used in a browser, beside a running stack."""

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import TIMEOUT_MS, Tab, chromium, open_tab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
expect.set_options(timeout=TIMEOUT_MS)

VIEWS = ("playground",)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests: each has tabs of its own."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def url(demo_stack: httpx.Client) -> str:
    """Of the page."""
    return str(demo_stack.base_url).rstrip("/")


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:
    """One as on a desk; it fails the test if anything was wrong in it."""
    with open_tab(browser, url) as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_telephone(browser: Browser, url: str, scheme: str) -> None:
    with open_tab(browser, url, width=360, scheme=scheme) as tab:
        wide = []
        for view in VIEWS:
            tab.open(view)
            tab.page.wait_for_load_state("networkidle")
            if tab.is_wider_than_the_screen:
                wide.append(view)

    assert wide == []


def test_the_dark_page_is_dark(browser: Browser, url: str) -> None:
    brightness = []
    for scheme in ("light", "dark"):
        with open_tab(browser, url, scheme=scheme) as tab:
            tab.open("playground")
            colour = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness.append(sum(map(int, re.findall(r"\d+", colour)[:3])))

    assert brightness[0] > 700
    assert brightness[1] < 120


class TestPlayground:
    def test_an_answer_is_streamed_and_its_tokens_are_coloured_by_their_experts(self, tab: Tab) -> None:
        tab.open("playground")
        page = tab.page

        page.get_by_role("button", name="a fact").click()
        page.get_by_role("button", name="Generate").click()
        answer = page.locator("section.answer")
        expect(answer).to_have_attribute("data-status", "done")

        tokens = page.locator(".token")
        assert tokens.count() > 3
        tokens.nth(1).hover()
        expect(page.locator(".reading")).to_contain_text("factual")
        expect(answer).to_contain_text("Confidence")
        expect(answer).to_contain_text("release-1")
        assert tokens.nth(1).evaluate("token => getComputedStyle(token).backgroundColor") != "rgba(0, 0, 0, 0)"

    def test_two_speakers_answer_side_by_side(self, tab: Tab) -> None:
        tab.open("playground")
        page = tab.page

        page.get_by_role("button", name="Compare with another").click()
        page.get_by_label("Answer B by").select_option("one:creative")
        page.get_by_role("button", name="Generate").click()

        answers = page.locator("section.answer[data-status=done]")
        expect(answers).to_have_count(2)
        expect(answers.nth(0)).to_contain_text("math")
        expect(answers.nth(1)).to_contain_text("creative 100.0 %")

    def test_it_can_be_stopped_and_keeps_what_was_written(self, tab: Tab) -> None:
        tab.open("playground")
        page = tab.page

        page.get_by_label("At most").fill("400")
        page.get_by_label("Temperature").fill("2")
        page.get_by_role("button", name="Generate").click()
        page.locator(".token").nth(3).wait_for()
        page.get_by_role("button", name="Stop").click()

        expect(page.locator("section.answer")).to_have_attribute("data-status", "stopped")
        assert page.locator(".token").count() > 3

    def test_an_error_is_told_as_the_api_words_it(self, tab: Tab, demo_stack: httpx.Client) -> None:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 10_000_000}}
        words = demo_stack.post("/generate_stream", json=body).json()["error"]["message"]
        tab.expected.append("/generate_stream")
        tab.open("playground")

        tab.page.get_by_label("At most").evaluate("input => input.removeAttribute('max')")
        tab.page.get_by_label("At most").fill("10000000")
        tab.page.get_by_role("button", name="Generate").click()

        expect(tab.page.get_by_role("alert")).to_contain_text(words)

    def test_the_keyboard_alone_will_do(self, tab: Tab) -> None:
        tab.open("playground")
        page = tab.page

        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        while page.evaluate("document.activeElement.id") != "prompt":
            page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type("Question: How do chemists write calcium?\nAnswer:")
        page.keyboard.press("Control+Enter")
        expect(page.locator("section.answer")).to_have_attribute("data-status", "done")
        while page.evaluate("document.activeElement.getAttribute('role')") != "listbox":
            page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")

        expect(page.locator(".token").nth(1)).to_have_attribute("aria-selected", "true")
        expect(page.locator(".reading")).to_contain_text("%")
