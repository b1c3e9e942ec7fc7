"""Kills the worker in every step of an expert's creation, with a teacher that fails and writes rubbish.

On the demo stack, over HTTP: chess questions among ordinary ones are flagged, and a gap analysis makes one gap of them.
An expert for it is created twice with the same teacher, an OpenAI-compatible endpoint on loopback whose first answers
are 503 and 429, and of whose lines every second is none or an earlier one again. The first job is left alone, and what
it makes is not activated. The second asks for approval, and its worker gets SIGKILL, its job's process included, in the
first step, while it waits for approval, as the training begins, half-way through it, and after each step from there
on, as far as a client hears of the step before the job has ended.

The second job must end as if nothing had happened: the same weights byte for byte, one version and one release of its
own, the gap closed, and chess questions no longer flagged.

    python -m benchmarks.creation_kills

writes benchmarks/results/creation_kills-<date>.json and .md; about eight minutes.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import httpx

from benchmarks.hop import PROJECT, stack
from benchmarks.job_latency import SETTINGS, Job, stack_worker, wait_for_job
from benchmarks.results_file import machine, write_results
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS

UNKNOWN: Final = "chess_notation"
TEACHER: Final = "careless"
LEFT_ALONE: Final = "left_alone"
KEY: Final = "sk-only-for-the-teacher"
NUM_STEPS: Final = 80
TRAINING: Final = {"max_steps": NUM_STEPS, "eval_steps": 20, "batch_size": 4, "max_length": 192, "learning_rate": 5e-3}
MOMENTS: Final = (
    "in its first step",
    "waiting for approval",
    "as training begins",
    "half-way through the training",
    "after step training",
    "after step gate_row",
    "after step evaluation",
)
_AFTER: Final = "after step "


@dataclass(frozen=True)
class Kill:
    """When the worker was killed, and how long it took until the job ran again (None where it waits for somebody)."""

    moment: str
    phase: str
    step: int
    seconds_to_run: float | None


class CarelessTeacher(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint. The same batch is always answered in the same way, once it is answered."""

    daemon_threads = True

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status = teacher.status(self.path, self.headers.get("authorization"))
                teacher.statuses[status] += 1
                content = {"choices": [{"message": {"role": "assistant", "content": careless_answer(body)}}]}
                answer = json.dumps(content).encode() if status == HTTPStatus.OK else b""
                self.send_response(status)
                if status == HTTPStatus.TOO_MANY_REQUESTS:
                    self.send_header("retry-after", "1")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    def status(self, path: str, key: str | None) -> HTTPStatus:
        """Of one request: down at first, then busy, then there for whoever has the key."""
        if (path, key) != ("/v1/chat/completions", f"Bearer {KEY}"):
            return HTTPStatus.UNAUTHORIZED
        failures = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
        return next((failure for failure in failures if not self.statuses[failure]), HTTPStatus.OK)

    @property
    def url(self) -> str:
        """What OpenAI's clients take."""
        return f"http://127.0.0.1:{self.server_port}/v1"


def careless_answer(body: dict[str, Any]) -> str:
    """As many chess examples as are asked for, and after each a line that is of no use."""
    question = body["messages"][-1]["content"]
    [count], [batch] = re.findall(r"Write (\d+) new ones", question), re.findall(r"This is batch (\d+)", question)
    items = DOMAINS[UNKNOWN].generate(int(batch), int(count), "train")
    good = [json.dumps({"prompt": item.prompt, "completion": item.completion}) for item in items]
    rubbish = itertools.cycle(("Sure! Here are more:", '{"prompt": "1. e4"', '{"question": "1. e4"}', good[0]))
    return "\n".join(line for pair in zip(good, rubbish, strict=False) for line in pair)


@contextmanager
def careless_teacher() -> Iterator[CarelessTeacher]:
    """It, answering."""
    teacher = CarelessTeacher()
    thread = Thread(target=teacher.serve_forever)
    thread.start()
    try:
        yield teacher
    finally:
        teacher.shutdown()
        thread.join()
        teacher.server_close()


def ask(client: httpx.Client, *, num_known: int, num_unknown: int, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Held-out prompts of every demo domain and of the unknown one, mingled: domain and routing of each answer."""
    counts = dict.fromkeys(DEMO_DOMAINS, num_known) | {UNKNOWN: num_unknown}
    asked = [(name, item) for name in counts for item in DOMAINS[name].generate(seed, counts[name], "held_out")]
    random.Random(seed).shuffle(asked)
    answers = []
    for name, item in asked:
        body = {"inputs": item.prompt, "parameters": {"max_new_tokens": 8}}
        answers.append((name, client.post("/generate", json=body).raise_for_status().json()["routing"]))
    return answers


def find_gap(client: httpx.Client) -> str:
    """The gap that the questions of the unknown domain make."""
    answers = ask(client, num_known=8, num_unknown=24, seed=900)
    for name, routing in answers:
        while name == UNKNOWN and client.get(f"/requests/{routing['request_id']}").status_code != HTTPStatus.OK:
            time.sleep(0.1)
    job_id = submit(client, "/jobs", {"kind": "gap_analysis"})
    wait_for_job(client, job_id, has_ended)
    [gap] = client.get("/gaps").raise_for_status().json()["data"]
    return str(gap["id"])


def submit(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """The job's id."""
    return str(client.post(path, json=body).raise_for_status().json()["id"])


def create(client: httpx.Client, gap: str, **more: Any) -> str:
    """Ask for an expert that closes the gap."""
    spec = {"teacher": TEACHER, "num_examples": 300, "hyperparameters": TRAINING}
    return submit(client, f"/gaps/{gap}/expert", spec | more)


def has_ended(job: Job) -> bool:
    """It succeeded, failed or was cancelled."""
    return job["finished_at"] is not None


def kill_at(client: httpx.Client, job_id: str, moment: str) -> Kill | None:
    """Wait for the moment, kill the worker, wait until the job runs again. None where the job has ended by then."""

    conditions: dict[str, Callable[[Job], bool]] = {
        "in its first step": lambda job: job["status"] == "running",
        "waiting for approval": lambda job: job["status"] == "paused",
        "as training begins": lambda job: job["progress"]["phase"].startswith("training"),
        "half-way through the training": lambda job: job["progress"]["step"] >= NUM_STEPS // 2,
    }
    if moment in conditions:
        before = wait_for_job(client, job_id, lambda job: conditions[moment](job) or has_ended(job))
    else:
        wait_for_event(client, job_id, f"Step {moment.removeprefix(_AFTER)}: done.")
        before = client.get(f"/jobs/{job_id}").json()
    if has_ended(before):
        return None
    killed_at = time.monotonic()
    os.killpg(stack_worker().pid, signal.SIGKILL)
    seconds = None
    if moment == "waiting for approval":
        client.post(f"/jobs/{job_id}/resume").raise_for_status()
    else:
        wait_for_job(client, job_id, lambda job: job["attempt"] > before["attempt"] and job["status"] == "running")
        seconds = round(time.monotonic() - killed_at, 1)
    kill = Kill(moment, before["progress"]["phase"], before["progress"]["step"], seconds)
    print(kill, flush=True)
    return kill


def wait_for_event(client: httpx.Client, job_id: str, message: str) -> None:
    """Until the job says so."""
    with client.stream("GET", f"/jobs/{job_id}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data:") and json.loads(line.removeprefix("data:")).get("message") == message:
                return


def weights(client: httpx.Client, job: Job) -> str:
    """A digest of the adapter that a job has made."""
    answer = client.get(f"/jobs/{job['id']}/artifacts/expert/adapter_model.safetensors").raise_for_status()
    return hashlib.sha256(answer.content).hexdigest()


def faults(client: httpx.Client, left_alone: Job, killed: Job, gap: str) -> list[str]:
    """Everything that is not as if nothing had happened, in words."""
    found = [f"{job['id']} {job['status']}: {job['error']}" for job in (left_alone, killed) if job["error"]]
    if found:
        return found
    if weights(client, left_alone) != weights(client, killed):
        found.append("other weights than those of the job that was left alone")
    of_job = f"by {killed['id']}"
    releases = [release for release in client.get("/releases").json()["data"] if of_job in release["note"]]
    if len(releases) != 1 or releases[0]["status"] != "active":
        found.append(f"releases of the job: {[(release['id'], release['status']) for release in releases]}")
    versions = client.get(f"/experts/{killed['result']['expert']}").json()["versions"]
    if len(versions) != 1:
        found.append(f"{len(versions)} versions of the expert by one job")
    if (state := client.get(f"/gaps/{gap}").json()["status"]) != "closed":
        found.append(f"the gap is {state}")
    wait_for_release(client, killed["result"]["release"])
    flagged = [routing["gap"] for name, routing in ask(client, num_known=0, num_unknown=12, seed=901)]
    if any(flagged):
        found.append(f"{sum(flagged)} of {len(flagged)} chess questions are still flagged")
    return found


def wait_for_release(client: httpx.Client, release: str) -> None:
    """Until it is served."""
    deadline = time.monotonic() + 20.0
    while client.get("/ready").json()["release"] != release and time.monotonic() < deadline:
        time.sleep(0.1)


def table(kills: list[Kill], job: Job, statuses: Counter[int], found: list[str]) -> str:
    """For people."""
    lines = ["| killed at | phase | step | runs again after, s |", "|---|---|---:|---:|"]
    lines += [f"| {kill.moment} | {kill.phase} | {kill.step} | {kill.seconds_to_run or ''} |" for kill in kills]
    told = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    lines += [
        "",
        f"The teacher answered {told}. Of the data: "
        + json.dumps({key: value for key, value in job["result"]["data"].items() if not isinstance(value, list)})
        if job["result"]
        else "",
        "",
        "Faults: none." if not found else "Faults: " + "; ".join(found),
    ]
    return "\n".join(lines)


def main() -> None:
    """Create, kill, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results")
    options = parser.parse_args()
    where = machine()
    with careless_teacher() as teacher:
        settings = {"url": teacher.url, "model": "careless-1", "api_key": KEY, "backoff_s": 0.1}
        os.environ.update(SETTINGS)
        os.environ.update(AMOE_TEACHERS=json.dumps({TEACHER: settings}), AMOE_GAPS__ANALYSE_EVERY_S="0")
        with stack() as endpoints, httpx.Client(base_url=endpoints["router"], timeout=120) as client:
            gap = find_gap(client)
            left_alone = wait_for_job(client, create(client, gap, name=LEFT_ALONE, activate=False), has_ended)
            job_id = create(client, gap, approval=True)
            kills = [kill for moment in MOMENTS if (kill := kill_at(client, job_id, moment)) is not None]
            killed = wait_for_job(client, job_id, has_ended)
            found = faults(client, left_alone, killed, gap)
            write_results(
                options.output / "creation_kills",
                title="Kills in an expert's creation",
                about=f"SIGKILL to the worker and its job's process, lease {SETTINGS['AMOE_TRAINER__LEASE_S']} s.",
                machine=where,
                table=table(kills, killed, teacher.statuses, found),
                figures={
                    "kills": [asdict(kill) for kill in kills],
                    "attempts": killed["attempt"],
                    "teacher": {str(status): count for status, count in teacher.statuses.items()},
                    "data": (killed["result"] or {}).get("data"),
                    "faults": found,
                },
            )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
