"""Steps that several journeys take, over HTTP only."""

import json
import time
from typing import Any

import httpx

JOB_TIMEOUT_S = 400.0


def upload(client: httpx.Client, filename: str, content: bytes) -> str:
    """Upload a training file and return its id."""
    response = client.post("/files", data={"purpose": "fine-tune"}, files={"file": (filename, content)})
    assert response.status_code in {200, 201}, response.text
    return str(response.json()["id"])


def submit(client: httpx.Client, job: dict[str, Any]) -> str:
    """Submit a job and return its id."""
    response = client.post("/jobs", json=job)
    assert response.status_code in {200, 201, 202}, response.text
    return str(response.json()["id"])


def wait_for(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once its state is final."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        if job["status"] in {"succeeded", "failed", "cancelled"}:
            return job
        time.sleep(0.5)
    raise AssertionError(f"{job_id} is not done after {JOB_TIMEOUT_S} s: {job}")


def events(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    """All events of a job, read from its server-sent stream until the server ends it."""
    found = []
    with client.stream("GET", f"/jobs/{job_id}/events") as response:
        assert response.status_code == httpx.codes.OK
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line.removeprefix("data:")))
    return found


def wait_until_served(client: httpx.Client, release: str) -> None:
    """Wait for a release that a worker activated: the router service looks every `catalog_poll_s`, half a second."""
    deadline = time.monotonic() + 20.0
    while client.get("/ready").json()["release"] != release:
        assert time.monotonic() < deadline, f"{release} is active but not served"
        time.sleep(0.1)


def generate(client: httpx.Client, prompt: str, **parameters: Any) -> dict[str, Any]:
    """One answer of /generate."""
    response = client.post("/generate", json={"inputs": prompt, "parameters": parameters})
    assert response.status_code == httpx.codes.OK, response.text
    answer: dict[str, Any] = response.json()
    return answer


def shares(answer: dict[str, Any]) -> dict[str, float]:
    """The attribution of an answer as expert -> share."""
    return {entry["expert"]: entry["share"] for entry in answer["routing"]["attribution"]}
