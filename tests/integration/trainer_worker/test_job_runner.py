"""One attempt at a job, in this process, with job code of the test's own."""

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.ports import free_port
from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.errors import Conflict, InvalidDataset
from services.shared.job_control import request_cancel, request_pause
from services.shared.job_events import list_events
from services.shared.job_lease import claim_job
from services.shared.jobs import create_job, find_job
from services.shared.lost_jobs import reap_jobs
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Handler, Publish
from services.trainer_worker.progress import TrainingProgress, TrainingStopped

pytestmark = pytest.mark.integration

SPEC = ExpertJobSpec(name="math", training_file="file-" + "0" * 32)
Run = Callable[..., JobRow]


@pytest.fixture
def job_id(sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        return create_job(session, SPEC).id


@pytest.fixture
def run(runner: JobRunner, sessions: sessionmaker[Session], job_id: str) -> Run:
    """Run the job with `handler` and return its row."""

    def run(handler: Handler, *, shutting_down: Callable[[], bool] = lambda: False) -> JobRow:
        unvalidated = replace(runner, shutting_down=shutting_down, validate=lambda _: None)
        replace(unvalidated, handlers=lambda _: handler).run(job_id)
        with sessions() as session:
            return find_job(session, job_id)

    return run


def publish_nothing(_: Session) -> dict[str, Any]:
    return {"made": "nothing"}


def wait_until_stopped(context: JobContext) -> Publish:
    """Work without end, step by step."""
    pause = threading.Event()
    while not context.should_stop():
        pause.wait(0.01)
    raise TrainingStopped


class TestSuccess:
    def test_stores_the_result_and_the_progress(self, run: Run, sessions: sessionmaker[Session], job_id: str) -> None:
        def handler(context: JobContext) -> Publish:
            for step in range(1, 501):
                context.report(TrainingProgress(phase="training", step=step, total_steps=500, loss=1 / step))
            context.note("Half-way.", data={"share": 0.5})
            return publish_nothing

        row = run(handler)

        assert (row.status, row.result["made"], row.error) == (JobStatus.SUCCEEDED, "nothing", None)
        assert row.result["run"]["seconds"] > 0
        assert row.result["run"]["peak_memory_bytes"] > 10 * 1024**2
        assert row.attempt == 1
        with sessions() as session:
            events = list_events(session, job_id)
        metrics = [event.data["step"] for event in events if event.type == "metrics"]
        assert metrics[-1] == 500
        assert len(metrics) <= 110
        assert [event.message for event in events if event.type == "message"] == ["Half-way."]
        assert events[-1].data == {"status": "succeeded"}

    def test_clears_the_work_but_keeps_the_log(self, run: Run, settings: Settings, job_id: str) -> None:
        def handler(context: JobContext) -> Publish:
            (context.folder.work / "checkpoint").write_text("large")
            return publish_nothing

        run(handler)

        folder = Storage(settings.storage.root).root / "jobs" / job_id
        assert [path.name for path in folder.iterdir()] == ["log.jsonl"]
        messages = [json.loads(line)["message"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert messages == ["job started", "job succeeded"]

    def test_publishes_and_finishes_together_or_not_at_all(
        self, run: Run, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        def handler(_: JobContext) -> Publish:
            def publish(session: Session) -> dict[str, Any]:
                create_job(session, SPEC)
                raise RuntimeError("after publishing, before finishing")

            return publish

        row = run(handler)

        assert row.status == JobStatus.FAILED
        with sessions() as session:
            assert session.query(JobRow).count() == 1

    def test_publishes_again_when_another_activation_came_in_between(self, run: Run) -> None:
        attempts: list[int] = []

        def publish(_: Session) -> dict[str, Any]:
            attempts.append(1)
            if len(attempts) < 3:
                raise Conflict("somebody else was faster", code="release_conflict")
            return {"attempts": len(attempts)}

        assert run(lambda _: publish).result["attempts"] == 3


class TestStop:
    def test_on_cancelling_ends_the_job(self, run: Run, sessions: sessionmaker[Session], job_id: str) -> None:
        def handler(context: JobContext) -> Publish:
            with sessions.begin() as session:
                request_cancel(session, job_id)
            return wait_until_stopped(context)

        assert run(handler).status == JobStatus.CANCELLED

    def test_on_shutdown_hands_the_job_back_with_its_work(self, run: Run, settings: Settings, job_id: str) -> None:
        stopping = threading.Event()

        def handler(context: JobContext) -> Publish:
            (context.folder.work / "checkpoint").write_text("kept")
            stopping.set()
            return wait_until_stopped(context)

        row = run(handler, shutting_down=stopping.is_set)

        assert (row.status, row.attempt) == (JobStatus.QUEUED, 0)
        assert (Storage(settings.storage.root).root / "jobs" / job_id / "work" / "checkpoint").exists()

    def test_on_pausing_keeps_state_and_lets_go(
        self, run: Run, sessions: sessionmaker[Session], settings: Settings, job_id: str
    ) -> None:
        def handler(context: JobContext) -> Publish:
            assert not context.should_keep_state()
            with sessions.begin() as session:
                request_pause(session, job_id)
            pause = threading.Event()
            while not context.should_stop():
                pause.wait(0.01)
            if context.should_keep_state():
                (context.folder.work / "checkpoint").write_text("kept")
            raise TrainingStopped

        row = run(handler)

        assert (row.status, row.attempt, row.owner) == (JobStatus.PAUSED, 0, None)
        assert (Storage(settings.storage.root).root / "jobs" / job_id / "work" / "checkpoint").exists()

    def test_on_cancelling_keeps_no_state(self, run: Run, sessions: sessionmaker[Session], job_id: str) -> None:
        kept: list[bool] = []

        def handler(context: JobContext) -> Publish:
            with sessions.begin() as session:
                request_pause(session, job_id)
                request_cancel(session, job_id)
            pause = threading.Event()
            while not context.should_stop():
                pause.wait(0.01)
            kept.append(context.should_keep_state())
            raise TrainingStopped

        assert run(handler).status == JobStatus.CANCELLED
        assert kept == [False]

    def test_on_losing_the_job_leaves_it_to_the_successor(
        self, run: Run, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        def handler(context: JobContext) -> Publish:
            with sessions.begin() as session:
                find_job(session, job_id).lease_expires_at = None
                find_job(session, job_id).status = JobStatus.QUEUED.value
                session.flush()
                assert claim_job(session, job_id, owner="successor", lease_s=60, max_attempts=9)
            return wait_until_stopped(context)

        row = run(handler)

        assert (row.status, row.owner, row.attempt) == (JobStatus.VALIDATING, "successor", 2)

    def test_a_second_message_for_the_same_job_does_nothing(self, run: Run) -> None:
        runs: list[str] = []

        def handler(context: JobContext) -> Publish:
            runs.append(context.job_id)
            return publish_nothing

        run(handler)
        row = run(handler)

        assert len(runs) == 1
        assert row.attempt == 1


class TestDatabaseAway:
    def test_under_the_job_itself_leaves_it_to_the_next_attempt(
        self, run: Run, sessions: sessionmaker[Session], settings: Settings, job_id: str
    ) -> None:
        nobody = create_engine(f"postgresql+psycopg://a:b@127.0.0.1:{free_port()}/none")

        def handler(context: JobContext) -> Publish:
            (context.folder.work / "checkpoint").write_text("kept")
            nobody.connect()
            raise AssertionError

        row = run(handler)

        assert (row.status, row.error) == (JobStatus.RUNNING, None)
        with sessions.begin() as session:
            find_job(session, job_id).lease_expires_at = row.created_at
        with sessions.begin() as session:
            assert reap_jobs(session, max_attempts=3).requeued == (job_id,)
        assert (Storage(settings.storage.root).job_folder(job_id) / "work" / "checkpoint").exists()


class TestFailure:
    @pytest.mark.parametrize(
        ("error", "code", "advice"),
        [
            (InvalidDataset("problems.jsonl line 7: not JSON"), "invalid_dataset", "line 7"),
            (OSError(errno.ENOSPC, "No space left on device", "optimizer.pt"), "disk_full", "Make room"),
            (MemoryError(), "out_of_memory", "batch_size"),
            (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
             "out_of_memory", "batch_size"),
            (ZeroDivisionError("division by zero"), "internal_error", "ZeroDivisionError"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )  # fmt: skip
    def test_tells_the_owner_what_to_do_and_the_log_where(
        self, run: Run, settings: Settings, job_id: str, error: Exception, code: str, advice: str
    ) -> None:
        def handler(_: JobContext) -> Publish:
            raise error

        row = run(handler)

        assert row.status == JobStatus.FAILED
        assert row.error["code"] == code
        assert advice in row.error["message"]
        assert "Traceback" not in json.dumps(row.error)
        log = (Storage(settings.storage.root).root / "jobs" / job_id / "log.jsonl").read_text()
        assert "Traceback" in log
