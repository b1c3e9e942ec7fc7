"""From prompts of a domain that nobody knows to the expert that answers them, over HTTP on the demo stack."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS
from services.trainer_worker.demo.domains.item import Item
from tests.e2e.conftest import PROJECT, running_stack
from tests.e2e.journey import generate, shares, submit, wait_for, wait_until_served
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

UNKNOWN = "chess_notation"
SETTINGS = {"AMOE_GAPS__ANALYSE_EVERY_S": "0"}
TRAINING = {"max_steps": 80, "eval_steps": 80, "batch_size": 4, "max_length": 192, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def stack() -> Iterator[httpx.Client]:
    """The demo, with every gap analysis on demand."""
    with running_stack(str(PROJECT / "demo" / "base"), SETTINGS) as client:
        yield client


def traffic(client: httpx.Client, *, num_known: int, num_unknown: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Held-out prompts of the demo's domains and of the unknown one, mingled: the domain and the answer of each."""
    asked: list[tuple[str, Item]] = []
    for name in (*DEMO_DOMAINS, UNKNOWN):
        number = num_unknown if name == UNKNOWN else num_known
        asked += [(name, item) for item in DOMAINS[name].generate(seed, number, "held_out")]
    random.Random(seed).shuffle(asked)
    return [(name, generate(client, item.prompt, max_new_tokens=8)) for name, item in asked]


def test_a_gap_is_found_filled_and_gone(stack: httpx.Client) -> None:
    answers = traffic(stack, num_known=8, num_unknown=20, seed=900)
    flagged = Counter(name for name, answer in answers if answer["routing"]["gap"])
    assert flagged[UNKNOWN] >= 19
    assert flagged.total() - flagged[UNKNOWN] <= 4, flagged

    gap = the_gap(stack, answers)
    assert gap["report"]["losses"]["mixture"]["mean"] > 2 * max(
        known["mixture"]["mean"] for known in gap["report"]["losses"]["known_domains"].values()
    )

    created = stack.post(
        f"/gaps/{gap['id']}/expert",
        json={"teacher": f"demo:{UNKNOWN}", "num_examples": 300, "hyperparameters": TRAINING},
    )
    assert created.status_code in {200, 201, 202}, created.text
    job = wait_for(stack, created.json()["id"])

    assert job["status"] == "succeeded", job["error"]
    assert job["result"]["gap"]["closed"]
    steps = {step["step"]: step for step in job["result"]["steps"]}
    judged = steps["evaluation"]["figures"]["figures"]
    assert judged["accuracy"]["gain"]["value"] >= 0.2, judged["accuracy"]
    assert judged["gain"]["low"] > 0.0
    assert not any(other["is_regression"] for other in judged["other_domains"].values())
    assert stack.get(f"/gaps/{gap['id']}").json()["status"] == "closed"

    wait_until_served(stack, job["result"]["release"])
    for name, answer in traffic(stack, num_known=3, num_unknown=12, seed=901):
        if name == UNKNOWN:
            assert not answer["routing"]["gap"]
            by_expert = shares(answer)
            assert max(by_expert, key=by_expert.__getitem__) == gap["expert_name"]


def the_gap(client: httpx.Client, answers: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The one gap that an analysis finds: nine in ten of its requests are of the unknown domain, and of those requests
    nine in ten are in it."""
    unknown = {answer["routing"]["request_id"] for name, answer in answers if name == UNKNOWN}
    for request_id in unknown:
        # Flagged requests are logged when they have been measured.
        wait_until(lambda name=request_id: client.get(f"/requests/{name}").status_code == httpx.codes.OK)
    analysis = wait_for(client, submit(client, {"kind": "gap_analysis"}))
    assert analysis["status"] == "succeeded", analysis["error"]
    [listed] = client.get("/gaps").json()["data"]
    gap: dict[str, Any] = client.get(f"/gaps/{listed['id']}").json()
    found = set(gap["requests"])
    assert len(found & unknown) >= 0.9 * len(unknown)
    assert len(found & unknown) >= 0.9 * len(found)
    return gap
