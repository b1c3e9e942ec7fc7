"""Routers that read the base model's hidden states: made by a job, released, and heard while generating."""

import json
from typing import Any

import httpx
import pytest

from services.trainer_worker.demo.domains import DOMAINS
from tests.e2e.journey import generate, shares, submit, upload, wait_for, wait_until_served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PURE = ("code", "creative", "factual", "math")
"""Domains that one expert should answer alone."""


def release_of(client: httpx.Client, job: dict[str, Any]) -> str:
    """Submit a router job that activates its release, and wait until that is served."""
    done = wait_for(client, submit(client, {"kind": "router", "activate": True, **job}))
    assert done["status"] == "succeeded", done["error"]
    release = str(done["result"]["release"])
    wait_until_served(client, release)
    return release


def num_right(client: httpx.Client, release: str) -> int:
    """Held-out prompts whose answer was mostly written by the expert of their domain."""
    right = 0
    for name in PURE:
        for item in DOMAINS[name].generate(11, 5, "held_out"):
            answer = generate(client, item.prompt, max_new_tokens=16)
            assert answer["routing"]["release"] == release
            by_expert = shares(answer)
            right += max(by_expert, key=by_expert.__getitem__) == name
    return right


def test_trunk_evidence_is_gathered_by_a_job_and_decides_in_both_services(demo_stack: httpx.Client) -> None:
    release = release_of(demo_stack, {"settings": {"tap_layer": 1}})

    assert num_right(demo_stack, release) >= 18

    prompt = DOMAINS["math"].generate(12, 1, "held_out")[0].prompt
    scored = demo_stack.post("/route", json={"inputs": prompt}).json()
    answer = generate(demo_stack, prompt, max_new_tokens=1, details=True)
    # The first new token is predicted under the weights after the prompt's last: what /route says they are.
    announced = {name: weight for name, weight in scored["tokens"][-1]["weights"].items() if weight > 0}
    assert answer["details"]["tokens"][0]["routing"] == pytest.approx(announced, abs=1e-4)


def test_a_learned_router_is_trained_by_a_job_and_routes(demo_stack: httpx.Client) -> None:
    files = {}
    for name in DOMAINS:
        if DOMAINS[name].in_demo:
            items = DOMAINS[name].generate(13, 120, "train")
            lines = [json.dumps({"prompt": item.prompt, "completion": item.completion}) for item in items]
            files[name] = upload(demo_stack, f"{name}.jsonl", "\n".join(lines).encode())

    release = release_of(
        demo_stack,
        {
            "router": "learned",
            "training_files": files,
            "settings": {"tap_layer": 1},
            "hyperparameters": {"num_steps": 30, "max_length": 64, "learning_rate": 3e-3},
        },
    )

    # Thirty steps do not make a good router; five columns by chance would get four of twenty right.
    assert num_right(demo_stack, release) >= 10


def test_a_learned_router_without_text_of_every_expert_says_which_are_missing(demo_stack: httpx.Client) -> None:
    job = wait_for(demo_stack, submit(demo_stack, {"kind": "router", "router": "learned"}))

    assert job["status"] == "failed"
    assert job["error"]["code"] == "training_file_missing"
    assert "math" in job["error"]["message"]
