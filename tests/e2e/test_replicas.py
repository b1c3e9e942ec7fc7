"""Journeys with two replicas: experts and releases change under load, and a replica is killed under load."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.trainer_worker.demo.domains import DOMAINS
from tests.e2e.conftest import PROJECT, RunningStack, running_replicas
from tests.e2e.journey import wait_until_served
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

STORM_S = float(os.environ.get("AMOE_STORM_S", "25"))
"""How long releases and experts change under load, at least; `make bench` has it rage for a minute."""
LONGEST_STORM_S = 180.0
"""On a machine so busy that little is answered it goes on until there is something to judge, but no longer."""
NUM_ROUTED_EACH, NUM_NAMED_WHOLE = 5, 10
"""Answers to judge: of every release, and of the named expert."""
NUM_ROUTED, NUM_NAMED = 44, 6
"""Concurrent generations: those that the active release decides, and those that name an expert."""
NUM_TOKENS = 12
NUM_STREAMS = 16
STREAM_TOKENS = 48
PATIENCE_S = 120.0
PROMPTS = [
    item.prompt
    for name in ("math", "code", "creative", "factual")
    for item in DOMAINS[name].generate(11, 2, "held_out")
]


@pytest.fixture(scope="module", name="stack")
def two_replicas() -> Iterator[RunningStack]:
    """`adaptive-moe up --replicas 2` on the demo."""
    if not (PROJECT / "demo" / "base" / "model.safetensors").is_file():
        pytest.skip("demo artifacts are not built: run `adaptive-moe demo build`")
    with running_replicas("demo/base", num_replicas=2) as stack:
        wait_until(lambda: _states(stack.client) == ["up", "up"], seconds=PATIENCE_S, every_s=0.2, what="both replicas")
        yield stack


@dataclass(frozen=True)
class Answer:
    """What a client got, and between which moments."""

    began: float
    ended: float
    status: int
    prompt: int
    text: str = ""
    release: str | None = None


@dataclass
class Timeline:
    """Which state held when: each from the moment its change was asked for to the moment the next one was done."""

    changes: list[tuple[float, float, str]] = field(default_factory=list)

    def change(self, state: str, act: Callable[[], httpx.Response]) -> None:
        """Do it, and note when."""
        began = time.monotonic()
        response = act()
        assert response.is_success, response.text
        self.changes.append((began, time.monotonic(), state))

    def during(self, answer: Answer) -> set[str]:
        """The states that held at some moment while an answer was made."""
        ends = [done for _, done, _ in self.changes[1:]] + [float("inf")]
        spans = zip(self.changes, ends, strict=True)
        return {state for (start, _, state), end in spans if start <= answer.ended and end >= answer.began}


@dataclass
class Storm:
    """Fifty clients, and two that change what the clients run on."""

    stack: RunningStack
    releases: list[str]
    active: Timeline = field(default_factory=Timeline)
    named: Timeline = field(default_factory=Timeline)
    routed_answers: list[Answer] = field(default_factory=list)
    named_answers: list[Answer] = field(default_factory=list)
    began: float = 0.0

    def rage(self) -> None:
        """Returns when it is over."""
        self.began = time.monotonic()
        routed = (_asking(self, self.routed_answers, first) for first in range(NUM_ROUTED))
        named = (_asking(self, self.named_answers, first, adapter_id="swap") for first in range(NUM_NAMED))
        _run_together([self._change_releases, self._change_experts, *routed, *named])

    def is_over(self) -> bool:
        """When it has lasted, and there is enough to judge."""
        lasted = time.monotonic() - self.began
        return lasted >= STORM_S and (self._has_enough() or lasted >= LONGEST_STORM_S)

    def _has_enough(self) -> bool:
        routed = Counter(answer.release for answer in list(self.routed_answers))
        named = sum(answer.status == 200 for answer in list(self.named_answers))
        changes = len(self.active.changes) > 5 + len(self.releases) and len(self.named.changes) > 8
        enough_routed = all(routed[release] >= NUM_ROUTED_EACH for release in self.releases)
        return changes and named >= NUM_NAMED_WHOLE and enough_routed

    def activate(self, release: str) -> None:
        """From now on, new requests run on this."""
        self.active.change(release, lambda: _activate(self.stack.client, release))

    def load(self, adapter: str) -> None:
        """The expert `swap` has these weights in its newest version."""
        self.named.change(adapter, lambda: _import(self.stack.client, "swap", adapter))

    def unload(self) -> None:
        """There is no expert `swap`."""
        self.named.change("gone", lambda: self.stack.client.delete("/experts/swap"))

    def _change_releases(self) -> None:
        for number in count(1):
            if self.is_over():
                return
            self.activate(self.releases[number % len(self.releases)])

    def _change_experts(self) -> None:
        for number in count():
            if self.is_over():
                return
            self.load(("math", "creative")[number % 2])
            if number % 3 == 2:
                self.unload()


def test_releases_and_experts_change_under_load_and_no_answer_is_of_a_wrong_one(stack: RunningStack) -> None:
    storm = Storm(stack, _three_releases(stack.client))
    said = {release: _answers_alone(storm, release) for release in storm.releases}
    swapped = {adapter: _answers_of_swap(storm, adapter) for adapter in ("math", "creative")}
    assert len({tuple(texts) for texts in said.values()}) == 3, "releases must differ for mistakes to show"
    assert swapped["math"] != swapped["creative"]

    storm.rage()

    storm.activate(storm.releases[0])
    assert {answer.status for answer in storm.routed_answers} == {200}
    assert [answer for answer in storm.routed_answers if answer.release not in storm.active.during(answer)] == []
    assert [answer for answer in storm.routed_answers if answer.text != said[str(answer.release)][answer.prompt]] == []
    by_release = Counter(answer.release for answer in storm.routed_answers)
    assert min(by_release[release] for release in storm.releases) >= NUM_ROUTED_EACH
    assert len(storm.active.changes) > 5 + len(storm.releases)
    _check_named(storm, swapped)


def _check_named(storm: Storm, swapped: dict[str, list[str]]) -> None:
    """Each answer is that of weights that `swap` had meanwhile; a refusal needs a moment without `swap`."""
    for answer in storm.named_answers:
        states = storm.named.during(answer)
        if answer.status == 404:
            assert "gone" in states
        else:
            assert answer.status == 200
            assert answer.text in {swapped[state][answer.prompt] for state in states - {"gone"}}
    assert len(storm.named.changes) > 8
    assert sum(answer.status == 200 for answer in storm.named_answers) >= NUM_NAMED_WHOLE


def test_a_replica_killed_under_load_costs_only_streams_that_had_begun_and_they_are_told(stack: RunningStack) -> None:
    client = stack.client
    expected = [_whole_stream(client, prompt) for prompt in range(len(PROMPTS))]
    victim = stack.experts[1]
    outcomes: list[tuple[int, int, list[dict[str, Any]]]] = []
    stop = threading.Event()

    def streaming(first: int) -> Callable[[], None]:
        def stream_on() -> None:
            with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as own:
                for prompt in count(first):
                    if stop.is_set():
                        return
                    outcomes.append(_stream(own, prompt % len(PROMPTS)))

        return stream_on

    def kill_and_wait() -> None:
        try:
            wait_until(
                lambda: len(outcomes) >= NUM_STREAMS and _running(victim) >= 2,
                seconds=PATIENCE_S,
                every_s=0.2,
                what="streams on the victim",
            )
            stack.replica_process(victim).kill()
            wait_until(lambda: "down" in _states(client), seconds=PATIENCE_S, every_s=0.2, what="the router to notice")
            wait_until(
                lambda: _states(client) == ["up", "up"],
                seconds=PATIENCE_S,
                every_s=0.2,
                what="the supervisor to bring it back",
            )
            wait_until(
                lambda: _finished(victim) >= 3,
                seconds=PATIENCE_S,
                every_s=0.2,
                what="traffic on the replica that came back",
            )
        finally:
            stop.set()

    _run_together([kill_and_wait, *(streaming(first) for first in range(NUM_STREAMS))])

    assert [status for _, status, _ in outcomes if status != 200] == []
    broken = [events for _, _, events in outcomes if "error" in events[-1]]
    for prompt, _, events in outcomes:
        if events not in broken:
            assert events[-1]["generated_text"] == expected[prompt]
            assert events[-1]["details"]["generated_tokens"] == STREAM_TOKENS
    assert all(len(events) > 1 for events in broken), "only what had begun may break off"
    assert all(events[-1]["error"]["code"] == "expert_service_broke_off" for events in broken)
    assert len(broken) <= NUM_STREAMS < len(outcomes)


def _three_releases(client: httpx.Client) -> list[str]:
    """The demo's, and two in which an expert is replaced by another's weights under the same name and evidence."""
    first = next(r for r in client.get("/releases").json()["data"] if r["status"] == "active")
    names = [expert["name"] for expert in first["experts"]]
    made = [first["id"]]
    for name, adapter in (("math", "code"), ("code", "creative")):
        version = _import(client, name, adapter, evidence_of=name).raise_for_status().json()["latest_version"]
        experts = [f"{name}@{version}" if other == name else f"{other}@1" for other in names]
        response = client.post("/releases", json={"experts": experts}).raise_for_status()
        made.append(response.json()["id"])
    return made


def _import(client: httpx.Client, name: str, adapter: str, *, evidence_of: str | None = None) -> httpx.Response:
    """Register the weights of a demo expert under a name."""
    folder = PROJECT / "demo" / "experts" / adapter
    files = [("files", (file, (folder / file).read_bytes())) for file in _ADAPTER_FILES]
    if evidence_of:
        exemplars = _exemplars(folder.parent / evidence_of)
        files.append(("exemplars", ("exemplars.jsonl", exemplars)))
    return client.post("/experts", data={"name": name}, files=files)


_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def _exemplars(folder: Path) -> bytes:
    return (folder / "exemplars.jsonl").read_bytes()


def _activate(client: httpx.Client, release: str) -> httpx.Response:
    return client.post(f"/releases/{release}/activate")


def _answers_alone(storm: Storm, release: str) -> list[str]:
    """What a release says to each prompt when nobody else asks."""
    storm.activate(release)
    wait_until_served(storm.stack.client, release)
    answers = [_ask(storm.stack.client, prompt, {}) for prompt in range(len(PROMPTS))]
    assert {answer.release for answer in answers} == {release}
    return [answer.text for answer in answers]


def _answers_of_swap(storm: Storm, adapter: str) -> list[str]:
    """What the expert `swap` says with these weights."""
    storm.load(adapter)
    return [_ask(storm.stack.client, prompt, {"adapter_id": "swap"}).text for prompt in range(len(PROMPTS))]


def _ask(client: httpx.Client, prompt: int, parameters: dict[str, Any]) -> Answer:
    began = time.monotonic()
    body = {"inputs": PROMPTS[prompt], "parameters": {"max_new_tokens": NUM_TOKENS, **parameters}}
    response = client.post("/generate", json=body)
    ended = time.monotonic()
    if not response.is_success:
        return Answer(began, ended, response.status_code, prompt)
    answer = response.json()
    return Answer(began, ended, 200, prompt, answer["generated_text"], answer["routing"]["release"])


def _asking(storm: Storm, answers: list[Answer], first: int, **parameters: Any) -> Callable[[], None]:
    """A client that asks one prompt after the other."""

    def ask_on() -> None:
        with httpx.Client(base_url=storm.stack.client.base_url, timeout=PATIENCE_S) as own:
            for prompt in count(first):
                if storm.is_over():
                    return
                answers.append(_ask(own, prompt % len(PROMPTS), parameters))

    return ask_on


def _whole_stream(client: httpx.Client, prompt: int) -> str:
    text: str = _stream(client, prompt)[2][-1]["generated_text"]
    return text


def _stream(client: httpx.Client, prompt: int) -> tuple[int, int, list[dict[str, Any]]]:
    """A prompt, its status and its events."""
    parameters = {"max_new_tokens": STREAM_TOKENS, "ignore_eos_token": True}
    body = {"inputs": PROMPTS[prompt], "parameters": parameters}
    with client.stream("POST", "/generate_stream", json=body) as response:
        events = [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]
    return prompt, response.status_code, events or [{"error": {"code": "nothing came"}}]


def _run_together(works: list[Callable[[], None]]) -> None:
    """All at once; the first failure is raised when all are done."""
    failures: list[BaseException] = []

    def kept(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

        return run

    threads = [threading.Thread(target=kept(work)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _states(client: httpx.Client) -> list[str]:
    return [replica["state"] for replica in client.get("/replicas").json()["data"]]


def _running(url: str) -> int:
    running: int = httpx.get(f"{url}/status", timeout=30).json()["running"]
    return running


def _finished(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("amoe_expert_sequences_finished_total{"))
