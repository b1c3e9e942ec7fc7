"""The web page as people meet it: every view loaded and used in a browser, beside a running stack."""

import json
import random
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from services.trainer_worker.demo.domains import DOMAINS
from tests.e2e.browser import TIMEOUT_MS, Tab, chromium, open_tab
from tests.e2e.conftest import PROJECT, running_stack
from tests.e2e.journey import generate, submit
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
expect.set_options(timeout=TIMEOUT_MS)

KEY = "the key of this stack"
VIEWS = (
    "playground",
    "experts",
    "experts/release-1",
    "jobs",
    "jobs/new?kind=expert",
    "analysis",
    "analysis/live",
    "graph",
    "gaps",
    "load",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests: each has tabs of its own."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def stack(browser: Browser) -> Iterator[httpx.Client]:
    """The demo, which wants a key; not even started where there is no browser."""
    with running_stack("demo/base", {"AMOE_ROUTER_SERVICE__API_KEY": KEY}) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture(scope="module")
def url(stack: httpx.Client) -> str:
    """Of the page."""
    return str(stack.base_url).rstrip("/")


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:
    """One as on a desk; it fails the test if anything was wrong in it."""
    with open_tab(browser, url, key=KEY) as opened:
        yield opened


def test_every_view_fits_a_telephone(browser: Browser, url: str) -> None:
    with open_tab(browser, url, key=KEY, width=360, scheme="dark") as tab:
        wide = []
        for view in VIEWS:
            tab.open(view)
            tab.page.wait_for_load_state("networkidle")
            if tab.is_wider_than_the_screen:
                wide.append(view)

    assert wide == []


def test_a_key_is_asked_for_once_and_kept_in_the_tab(browser: Browser, url: str) -> None:
    with open_tab(browser, url) as tab:
        tab.expected += ["/experts", "/releases"]
        tab.open("experts")

        tab.page.get_by_role("textbox", name="Key").fill(KEY)
        tab.page.get_by_role("button", name="Use this key").click()
        expect(tab.page.get_by_role("link", name="release-1")).to_be_visible()
        tab.page.reload()

        expect(tab.page.get_by_role("link", name="release-1")).to_be_visible()
        assert tab.page.get_by_role("dialog").count() == 0


def test_the_first_view_takes_input_within_a_second(browser: Browser, url: str) -> None:
    """The best of some loads: the machine may be busy with others."""
    seconds = []
    for _ in range(3):
        with open_tab(browser, url, key=KEY) as tab:
            tab.page.goto(f"{url}/", wait_until="commit")
            tab.page.locator("#prompt").fill("typed at once")
            seconds.append(tab.page.evaluate("performance.now()") / 1000)

    assert min(seconds) < 1.0, seconds


def test_the_dark_page_is_dark(browser: Browser, url: str) -> None:
    brightness = []
    for scheme in ("light", "dark"):
        with open_tab(browser, url, key=KEY, scheme=scheme) as tab:
            tab.open("playground")
            colour = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness.append(sum(map(int, re.findall(r"\d+", colour)[:3])))

    assert brightness[0] > 700
    assert brightness[1] < 120


STOP_AFTER_FOUR_TOKENS = """() => {
  const watch = setInterval(() => {
    const stop = document.querySelector("button.stop");
    if (stop === null || document.querySelectorAll(".token").length < 4) return;
    clearInterval(watch);
    stop.click();
  }, 1);
}"""


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

    def test_another_release_answers_beside_experts_with_weights_of_ones_own(
        self, tab: Tab, stack: httpx.Client
    ) -> None:
        other = stack.post("/releases", json={"experts": ["code", "creative"]}).json()["id"]
        tab.open("playground")
        page = tab.page

        page.get_by_role("button", name="Compare with another").click()
        page.get_by_label("Answer A by").select_option(f"release:{other}")
        page.get_by_label("Answer B by").select_option("own")
        page.get_by_role("spinbutton", name="math").fill("0.5")
        page.get_by_role("spinbutton", name="creative").fill("0.5")
        page.get_by_role("button", name="Generate").click()

        answers = page.locator("section.answer[data-status=done]")
        expect(answers).to_have_count(2)
        expect(answers.nth(0)).to_contain_text(other)
        expect(answers.nth(1)).to_contain_text("math 50.0 %")

    def test_it_can_be_stopped_and_keeps_what_was_written(self, tab: Tab) -> None:
        tab.open("playground")
        page = tab.page

        # So hot that it does not end by itself.
        page.get_by_label("Temperature").evaluate("input => input.removeAttribute('max')")
        page.get_by_label("Temperature").fill("5")
        page.get_by_label("At most").fill("400")
        # In the page itself: on a busy machine the answer may end while a click makes its way there.
        page.evaluate(STOP_AFTER_FOUR_TOKENS)
        page.get_by_role("button", name="Generate").click()

        expect(page.locator("section.answer")).to_have_attribute("data-status", "stopped")
        assert page.locator(".token").count() > 3

    def test_an_error_is_told_as_the_api_words_it(self, tab: Tab, stack: httpx.Client) -> None:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 10_000_000}}
        words = stack.post("/generate_stream", json=body).json()["error"]["message"]
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


class TestExpertsAndReleases:
    def test_a_release_is_activated_compared_and_rolled_back(self, tab: Tab, stack: httpx.Client) -> None:
        made = stack.post("/releases", json={"experts": ["code", "math"], "note": "two only"}).json()["id"]
        page = tab.page
        tab.open("experts")

        page.get_by_role("row", name=made).get_by_role("button", name="Activate").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(f"answered by {made} instead of release-1")
        dialog.get_by_role("button", name="Activate").click()
        expect(page.get_by_role("row", name=made)).to_contain_text("active")
        assert stack.get(f"/releases/{made}").json()["status"] == "active"

        page.get_by_label("Compare release-1", exact=True).check()
        page.get_by_label(f"Compare {made}", exact=True).check()
        page.get_by_role("button", name="Compare release-1 and").click()
        expect(page.locator(".names").first).to_contain_text("creative@1")

        tab.open("experts")
        page.get_by_role("button", name="Roll back").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        expect(page.get_by_role("row", name="release-1")).to_contain_text("active")
        assert stack.get("/releases/release-1").json()["status"] == "active"

    def test_an_adapter_is_dropped_and_imported(self, tab: Tab, stack: httpx.Client) -> None:
        folder = PROJECT / "demo" / "experts" / "math"
        page = tab.page
        tab.open("experts")

        names = ("adapter_config.json", "adapter_model.safetensors", "exemplars.jsonl")
        page.get_by_label("Drop an adapter").set_input_files([folder / name for name in names])
        page.get_by_label("Name").fill("sums")
        page.get_by_role("button", name="Import").click()

        expect(page.get_by_role("status").filter(has_text="sums version 1")).to_be_visible()
        expect(page.get_by_role("row", name="sums", exact=False).last).to_be_visible()
        assert stack.get("/experts/sums").json()["latest_version"] == 1

    def test_a_refusal_is_told_in_the_dialog(self, tab: Tab, stack: httpx.Client) -> None:
        made = stack.post("/releases", json={"experts": ["code"]}).json()["id"]
        tab.open("experts")
        page = tab.page
        page.get_by_role("row", name=made).get_by_role("button", name="Activate").click()

        # Somebody else has activated another one meanwhile.
        stack.post(f"/releases/{made}/activate", json={})
        tab.expected.append("/activate")
        page.get_by_role("dialog").get_by_role("button", name="Activate").click()

        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(made)
        stack.post("/releases/release-1/activate", json={"force": True})


class TestJobs:
    def test_one_is_reckoned_submitted_watched_and_its_graph_looked_at(self, tab: Tab) -> None:
        page = tab.page
        tab.open("jobs/new?kind=image_cooperation")

        page.get_by_label("num epochs").fill("1")
        page.get_by_label("num routing examples").fill("8")
        page.get_by_role("button", name="What would it take?").click()
        expect(page.get_by_role("status", name="What it would take")).to_contain_text("Steps")
        page.get_by_role("button", name="Submit").click()

        state = page.get_by_role("region", name="State")
        expect(state).to_have_attribute("data-status", re.compile("running|succeeded"), timeout=4 * TIMEOUT_MS)
        expect(state).to_have_attribute("data-status", "succeeded", timeout=4 * TIMEOUT_MS)
        expect(state.get_by_role("progressbar")).to_have_attribute("value", re.compile("[1-9]"))
        expect(page.get_by_role("img", name="Loss.")).to_be_visible()
        expect(page.get_by_role("button", name="experiment/report.json")).to_be_visible()
        page.get_by_text("Log of the workers").click()
        expect(page.get_by_label("Log", exact=True)).to_be_visible()

        page.get_by_role("link", name="See its cooperation graph").click()
        expect(page.get_by_role("img", name="Who recruits whom, after epoch 1")).to_be_visible()
        page.get_by_role("slider", name="Epoch").fill("0")
        figure = page.get_by_role("figure", name="Who recruits whom, before training")
        for kind in ("PNG", "SVG", "CSV"):
            with page.expect_download() as download:
                figure.get_by_role("button", name=kind).click()
            assert download.value.path().stat().st_size > 500
        figure.get_by_text("As a table").click()
        expect(figure.get_by_role("row")).to_have_count(8 * 7 + 1)

    def test_one_is_paused_resumed_and_cancelled(self, tab: Tab, stack: httpx.Client) -> None:
        # No worker of this stack takes from that queue, so the job waits for what is asked of it.
        job = submit(stack, {"kind": "image_cooperation", "queue": "gpu"})
        tab.open(f"jobs/{job}")

        tab.page.get_by_role("button", name="Pause").click()
        expect(tab.page.get_by_role("region", name="State")).to_have_attribute("data-status", "paused")
        tab.page.get_by_role("button", name="Resume").click()
        expect(tab.page.get_by_role("region", name="State")).to_have_attribute("data-status", "queued")
        tab.page.get_by_role("button", name="Cancel job").click()

        expect(tab.page.get_by_role("region", name="State")).to_have_attribute("data-status", "cancelled")
        tab.open("jobs?status=cancelled")
        expect(tab.page.locator("table.jobs")).to_contain_text(job[:12])

    def test_every_kind_has_a_form(self, tab: Tab, stack: httpx.Client) -> None:
        kinds = stack.get("/openapi.json").json()["components"]["schemas"]["JobKind"]["enum"]
        page = tab.page
        for kind in kinds:
            tab.open(f"jobs/new?kind={kind}")
            expect(page.get_by_role("form", name=f"Job of kind {kind}")).to_be_visible()


class TestAnalysis:
    def test_a_trace_is_dropped_and_looked_at_layer_by_layer(self, tab: Tab) -> None:
        page = tab.page
        tab.open("analysis")
        expect(page.get_by_role("heading", name="No traces yet")).to_be_visible()

        drop(tab, ".drop", "moe_routes.jsonl", recorded_routes())
        page.get_by_role("textbox", name="Name", exact=True).fill("two domains")
        page.get_by_role("button", name="Import").click()
        expect(page.get_by_text("Degenerate, no figure is made of it")).to_be_visible(timeout=4 * TIMEOUT_MS)
        expect(page.get_by_role("img", name="Domains and experts, layer 0.")).to_be_visible()
        page.get_by_role("slider", name="Layer").press("ArrowRight")

        for figure in (
            "Domains and experts",
            "Activations over the tokens",
            "From one token to the next",
            "Chosen together",
        ):
            expect(page.get_by_role("img", name=f"{figure}, layer 1.")).to_be_visible()
        expect(page.get_by_role("img", name="Autocorrelation, layer 1.")).to_be_visible()
        expect(page.get_by_role("img", name="Domains and experts: Cramér's V.")).to_be_visible()
        expect(page.get_by_role("row", name="Stickiness beyond the topic")).to_be_visible()
        assert "layer=1" in page.url
        domains = page.get_by_role("figure", name="Domains and experts, layer 1")
        for kind in ("PNG", "SVG", "CSV"):
            with page.expect_download() as download:
                domains.get_by_role("button", name=kind).click()
            assert download.value.path().stat().st_size > 200
        domains.get_by_label("Show").select_option("difference")
        domains.get_by_text("As a table").click()
        expect(domains.get_by_role("row")).to_have_count(2 * 8 + 1)

        tab.open("analysis")
        page.get_by_role("row", name="two domains").get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("heading", name="No traces yet")).to_be_visible()

    def test_the_live_log_is_analysed_the_same_way(self, tab: Tab, stack: httpx.Client) -> None:
        prompts = [item.prompt for name in ("math", "code") for item in DOMAINS[name].generate(3, 6, "train")]
        for prompt in prompts:
            generate(stack, prompt, max_new_tokens=6)
        wait_until(lambda: stack.get("/analysis").json()["num_requests"] >= len(prompts), what="the log", every_s=0.5)

        tab.open("analysis/live")

        expect(tab.page.get_by_role("img", name="Domains and experts, layer 0.")).to_be_visible()


def recorded_routes() -> str:
    """A routing log as vLLM's patches write them: two domains with experts of their own, and a layer that never
    changes."""
    generator = random.Random(0)
    lines: list[dict[str, object]] = [{"type": "meta", "top_k": 2, "num_experts": 8, "layers_logged": [0, 1, 2]}]
    for request, domain in enumerate(("code", "math") * 5):
        for position in range(20):
            shared = {"type": "route", "req_id": f"r{request}", "domain": domain, "token_idx": position}
            for layer in range(3):
                first = generator.randrange(4) + 4 * (domain == "math")
                experts = [0, 1] if layer == 2 else [first, (first + 1 + generator.randrange(6)) % 8]
                lines.append({**shared, "layer": layer, "topk_ids": experts, "topk_weights": [0.7, 0.3]})
    return "".join(json.dumps(line) + "\n" for line in lines)


def drop(tab: Tab, selector: str, name: str, content: str) -> None:
    """What dragging a file from the desk onto an element comes to."""
    files = tab.page.evaluate_handle(
        """([name, content]) => {
            const files = new DataTransfer();
            files.items.add(new File([content], name));
            return files;
        }""",
        [name, content],
    )
    tab.page.locator(selector).dispatch_event("drop", {"dataTransfer": files})


class TestGaps:
    def test_one_is_found_read_and_dismissed(self, tab: Tab, stack: httpx.Client) -> None:
        ask_what_nobody_knows(stack)
        page = tab.page
        tab.open("gaps")
        expect(page.get_by_role("heading", name="No gaps found yet")).to_be_visible()

        page.get_by_role("button", name="Look for gaps now").click()
        state = page.get_by_role("region", name="State")
        expect(state).to_have_attribute("data-status", "succeeded", timeout=4 * TIMEOUT_MS)
        tab.open("gaps")
        page.locator("a.card").first.click()
        expect(page.get_by_role("heading", name="Typical prompts")).to_be_visible()
        page.get_by_role("link", name="Create an expert").click()
        expect(page.get_by_label("Name")).to_have_value(re.compile("."))
        page.get_by_label("Teacher").fill("demo:chess_notation")
        page.get_by_role("button", name="What would it take?").click()
        expect(page.get_by_role("status", name="What it would take")).to_be_visible()

        page.go_back()
        page.get_by_role("button", name="Dismiss").click()
        page.get_by_role("dialog").get_by_role("button", name="Dismiss").click()
        expect(page.locator(".badge", has_text="dismissed")).to_be_visible()


def ask_what_nobody_knows(stack: httpx.Client) -> None:
    """Enough flagged requests beside ordinary ones for a cluster."""
    unknown = [item.prompt for item in DOMAINS["chess_notation"].generate(1, 24, "train")]
    known = [item.prompt for item in DOMAINS["math"].generate(1, 24, "train")]
    for prompt in [*unknown, *known]:
        generate(stack, prompt, max_new_tokens=1)


class TestLoad:
    def test_it_shows_what_is_going_on(self, tab: Tab, stack: httpx.Client) -> None:
        tab.open("load")
        page = tab.page
        expect(page.get_by_role("region", name="Now")).to_contain_text("release-1")
        expect(page.get_by_role("row", name="replica-1")).to_contain_text("up")

        generate(stack, "Question: How do chemists write calcium?\nAnswer:", max_new_tokens=8)

        expect(page.get_by_role("img", name="Tokens.")).to_be_visible()
        expect(page.get_by_role("img", name="Latency.")).to_be_visible()
