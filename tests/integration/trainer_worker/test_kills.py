"""One job whose worker gets `kill -9` in every state: queued, validating, paused, publishing.

Each time the worker is held where it is to die, by a lock on the table that it asks for next. Killed amid its steps:
test_worker.py. Fifty times by chance, Valkey and Postgres too: `python -m benchmarks.kill_cycles`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import ExpertVersionRow, JobRow
from services.shared.job_control import request_pause, resume_job
from services.shared.job_events import list_events
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.vocabulary import JobStatus

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = ExpertHyperparameters(rank=4, max_steps=4, batch_size=1, max_length=32, eval_steps=2)
PATIENCE_S = 600.0

Start = Callable[[], "subprocess.Popen[bytes]"]

_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND application_name = 'adaptive-moe-job' AND query LIKE :words"
)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """With attempts enough for every kill."""
    return environment | {"AMOE_TRAINER__MAX_ATTEMPTS": "20"}


def test_a_job_whose_worker_is_killed_in_every_state_ends_once(
    submit: Callable[[ExpertJobSpec], str],
    wait_for: Callable[..., JobRow],
    start_worker: Start,
    word_problems: str,
    sessions: sessionmaker[Session],
) -> None:
    job_id = submit(ExpertJobSpec(name="math", training_file=word_problems, hyperparameters=SHORT))

    with dying_worker(start_worker, sessions, "LOCK TABLE jobs IN EXCLUSIVE MODE", "%FOR UPDATE SKIP LOCKED"):
        assert wait_for(job_id, at_once).status == JobStatus.QUEUED
    with dying_worker(start_worker, sessions, "LOCK TABLE files", "%FROM files%"):
        assert wait_for(job_id, at_once).status == JobStatus.VALIDATING
        with sessions.begin() as session:
            request_pause(session, job_id)
    idle = start_worker()
    paused = wait_for(job_id, lambda row: row.status == JobStatus.PAUSED, PATIENCE_S)
    kill(idle)
    with sessions.begin() as session:
        resume_job(session, job_id)
    with dying_worker(start_worker, sessions, "LOCK TABLE expert_versions IN EXCLUSIVE MODE", "INSERT INTO expert_v%"):
        publishing = wait_for(job_id, at_once)
    start_worker()
    ended = wait_for(job_id, timeout_s=PATIENCE_S)

    assert (publishing.status, publishing.phase) == (JobStatus.RUNNING, "publishing")
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ended.attempt > publishing.attempt > paused.attempt > 0
    with sessions() as session:
        versions = session.scalars(select(ExpertVersionRow).where(ExpertVersionRow.job_id == job_id)).all()
        statuses = [event.data["status"] for event in list_events(session, job_id) if event.type == "status"]
    assert [version.digest for version in versions] == [ended.result["digest"]]
    assert statuses.count("succeeded") == 1
    assert statuses.count("validating") == ended.attempt


@contextmanager
def dying_worker(start_worker: Start, sessions: sessionmaker[Session], lock: str, words: str) -> Iterator[None]:
    """A worker whose job's process waits, inside the block, for a lock with a query like `words`; killed after it."""
    with sessions() as holder:
        holder.execute(text(lock))
        worker = start_worker()
        deadline = time.monotonic() + PATIENCE_S
        while not _num_waiting(sessions, words):
            assert time.monotonic() < deadline, f"no job's process asked {words!r} within {PATIENCE_S:.0f} s"
            time.sleep(0.05)
        yield
        kill(worker)


def kill(worker: "subprocess.Popen[bytes]") -> None:
    """The worker, its reaper, its job and the keeper of its lease, all at once."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def at_once(_: JobRow) -> bool:
    """The row as it is."""
    return True


def _num_waiting(sessions: sessionmaker[Session], words: str) -> int:
    with sessions() as session:
        return session.scalar(_WAITING, {"words": words}) or 0
