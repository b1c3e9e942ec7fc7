"""A job's waits, over HTTP on a whole stack: from submitting to its first step, from `kill -9` to running again.

    python -m benchmarks.job_latency --kills 5

writes benchmarks/results/job_latency-<date>.json and .md.
"""

import argparse
import json
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks.hop import PROJECT, stack
from benchmarks.results_file import machine, write_results

LEASE_S: Final = 5.0
PATIENCE_S: Final = 300.0
TRUSTED_AFTER_S: Final = 61.0
POLL_S: Final = 0.02
SETTINGS: Final = {
    "AMOE_TRAINER__LEASE_S": str(LEASE_S),
    "AMOE_TRAINER__HEARTBEAT_S": "1",
    "AMOE_TRAINER__REAP_EVERY_S": "1",
    "AMOE_TRAINER__MAX_ATTEMPTS": "100",
}

Job = dict[str, Any]


@dataclass(frozen=True)
class JobLatencies:
    """Seconds, one for each job or kill."""

    submit_to_claim_s: list[float]
    submit_to_step_s: list[float]
    kill_to_claim_s: list[float]
    kill_to_step_s: list[float]

    def lines(self) -> list[str]:
        """For the report."""
        return [
            f"From submitting over HTTP until a job runs: {_spread(self.submit_to_claim_s)}; until its first step is "
            f"done: {_spread(self.submit_to_step_s)}.",
            f"From `kill -9` of its worker until it runs again (lease {LEASE_S:.0f} s): "
            f"{_spread(self.kill_to_claim_s)}; until it is a step further than before: {_spread(self.kill_to_step_s)}.",
        ]


def _spread(seconds: list[float]) -> str:
    return f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s of {len(seconds)}"


def measure_jobs(*, num_kills: int) -> JobLatencies:
    """Submit as many jobs, and kill the worker of the last one as often."""
    os.environ.update(SETTINGS)
    latencies = JobLatencies([], [], [], [])
    with stack() as endpoints, httpx.Client(base_url=endpoints["router"], timeout=60) as client:
        file_id = _upload(client)
        job_id = ""
        for number in range(num_kills):
            if job_id:
                client.post(f"/jobs/{job_id}/cancel").raise_for_status()
                wait_for_job(client, job_id, lambda job: job["finished_at"] is not None)
            submitted_at = time.monotonic()
            job_id = _submit(client, file_id, number)
            wait_for_job(client, job_id, lambda job: job["status"] == "running")
            latencies.submit_to_claim_s.append(time.monotonic() - submitted_at)
            wait_for_job(client, job_id, lambda job: job["progress"]["step"] > 0)
            latencies.submit_to_step_s.append(time.monotonic() - submitted_at)
        for _ in range(num_kills):
            _kill_once(client, job_id, latencies)
    return latencies


def _kill_once(client: httpx.Client, job_id: str, latencies: JobLatencies) -> None:
    """Kill the worker, its job's process included, once the supervisor trusts it: it lets one wait that died often."""
    time.sleep(max(0.0, stack_worker().create_time() + TRUSTED_AFTER_S - time.time()))
    before = wait_for_job(
        client, job_id, lambda job: job["status"] == "running" and job["progress"]["phase"] == "training"
    )
    killed_at = time.monotonic()
    os.killpg(stack_worker().pid, signal.SIGKILL)
    wait_for_job(client, job_id, lambda job: job["attempt"] > before["attempt"])
    latencies.kill_to_claim_s.append(time.monotonic() - killed_at)
    wait_for_job(
        client,
        job_id,
        lambda job: job["attempt"] > before["attempt"] and job["progress"]["step"] > before["progress"]["step"],
    )
    latencies.kill_to_step_s.append(time.monotonic() - killed_at)


def stack_worker() -> psutil.Process:
    """The stack's worker. It leads a process group; its children, which look like it, do not."""
    everyone = psutil.Process().children(recursive=True)
    return next(
        process
        for process in everyone
        if "services.trainer_worker.main" in process.cmdline() and os.getpgid(process.pid) == process.pid
    )


def _upload(client: httpx.Client) -> str:
    lines = [json.dumps({"prompt": f"{a} + {b} =", "completion": f" {a + b}"}) for a in range(20) for b in range(20)]
    files = {"file": ("sums.jsonl", "\n".join(lines).encode())}
    answer = client.post("/files", data={"purpose": "fine-tune"}, files=files).raise_for_status()
    return str(answer.json()["id"])


def _submit(client: httpx.Client, file_id: str, number: int) -> str:
    """A job without end whose steps are short, with a checkpoint at every tenth."""
    hyperparameters = {
        "max_steps": 1_000_000,
        "batch_size": 1,
        "max_length": 32,
        "eval_steps": 10,
        "early_stopping_patience": 0,
    }
    spec = {
        "kind": "expert",
        "name": f"latency-{number}",
        "training_file": file_id,
        "hyperparameters": hyperparameters,
    }
    return str(client.post("/jobs", json=spec).raise_for_status().json()["id"])


def wait_for_job(client: httpx.Client, job_id: str, condition: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        job: Job = client.get(f"/jobs/{job_id}").raise_for_status().json()
        if condition(job):
            return job
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:.0f} s for {job}")
        time.sleep(POLL_S)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="so many jobs, and so many kills")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results")
    options = parser.parse_args()
    where = machine()
    latencies = measure_jobs(num_kills=options.kills)
    write_results(
        options.output / "job_latency",
        title="A job's waits",
        about="Over HTTP on the whole stack, demo base model.",
        machine=where,
        table="\n\n".join(latencies.lines()),
        figures=vars(latencies),
    )


if __name__ == "__main__":
    main()
