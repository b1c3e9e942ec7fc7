"""Imports as jobs: a trace with its analysis, or a reason; never one without the other."""

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import FileRow, JobRow, TraceRow
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.schemas.trace_import import TraceImportJobSpec
from services.shared.storage import Storage
from services.shared.traces_registry import create_trace, find_trace, trace_id_of
from services.shared.vocabulary import JobKind, JobStatus, TraceStatus
from services.traces.analysis import read_layer, read_overview
from services.traces.table import Trace
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Handler, Publish, handler_of
from tests.unit.traces.importers.recordings import route, routes

pytestmark = pytest.mark.integration

Import = Callable[..., tuple[JobRow, TraceRow]]


def recording(*, num_requests: int = 6, num_tokens: int = 12) -> bytes:
    rng = np.random.default_rng(0)
    return routes(
        [
            route(f"r{number}", position, rng.permutation(8)[:2].tolist(), domain=("code", "math")[number % 2])
            for number in range(num_requests)
            for position in range(num_tokens)
        ]
    )


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings.storage.root)


@pytest.fixture
def queued(sessions: sessionmaker[Session], storage: Storage) -> Callable[..., str]:
    """Upload and submit as the router service does; the job's id."""

    def queued(content: bytes, **options: Any) -> str:
        file_id = f"file-{uuid.uuid4().hex}"
        storage.upload(file_id).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        spec = TraceImportJobSpec.model_validate({"name": "routes", "files": [file_id], "options": options})
        with sessions.begin() as session:
            session.add(FileRow(id=file_id, purpose="trace", filename="a.jsonl", num_bytes=len(content), sha256=digest))
            job_id = create_job(session, spec).id
            create_trace(session, job_id=job_id, name=spec.named_trace())
        return job_id

    return queued


@pytest.fixture
def run_import(queued: Callable[..., str], runner: JobRunner, sessions: sessionmaker[Session]) -> Import:
    """Import to the end; the job and its trace."""

    def run(content: bytes, **options: Any) -> tuple[JobRow, TraceRow]:
        job_id = queued(content, **options)
        runner.run(job_id)
        with sessions.begin() as session:
            return find_job(session, job_id), find_trace(session, trace_id_of(job_id))

    return run


class TestTraceImportJob:
    def test_makes_a_trace_with_its_analysis(
        self, run_import: Import, storage: Storage, sessions: sessionmaker[Session]
    ) -> None:
        job, row = run_import(recording(), num_experts=8)

        assert (job.status, row.status) == (JobStatus.SUCCEEDED, TraceStatus.READY), job.error
        assert row.digest is not None
        assert row.analysis_digest is not None
        assert job.result is not None
        assert job.result["trace"] == row.id
        assert row.digest not in str(job.result)
        trace = Trace(storage.artifact(row.digest))
        assert trace.description.model_dump(mode="json") == row.description
        assert trace.description.num_tokens == 72
        overview = read_overview(storage.artifact(row.analysis_digest))
        assert overview.layers == (0,)
        assert read_layer(storage.artifact(row.analysis_digest), 0).num_experts == 8
        with sessions() as session:
            told = {event.data.get("code") for event in list_events(session, job.id, after=0, limit=100)}
        assert "phase_unknown" in told

    def test_what_cannot_be_read_fails_with_the_place(self, run_import: Import, storage: Storage) -> None:
        job, row = run_import(recording() + b"no route\n")

        assert (job.status, row.status) == (JobStatus.FAILED, TraceStatus.FAILED)
        assert job.error is not None
        assert job.error["code"] == "invalid_trace"
        assert "a.jsonl, line 73 is not JSON" in job.error["message"]
        assert row.error == job.error
        assert list(storage.artifacts.iterdir()) == []
        assert list(storage.staging.iterdir()) == []

    def test_one_that_was_broken_off_is_done_again(
        self, queued: Callable[..., str], runner: JobRunner, sessions: sessionmaker[Session]
    ) -> None:
        job_id = queued(recording())

        def broken_off(kind: JobKind) -> Handler:
            handler = handler_of(kind)

            def run(context: JobContext) -> Publish:
                handler(context)
                raise ConnectionError("the machine goes down behind the last artifact")

            return run

        with sessions.begin() as session:
            assert find_trace(session, trace_id_of(job_id)).status == TraceStatus.IMPORTING
        left = runner.storage.job_folder(job_id) / "work" / "unpacked"
        left.mkdir(parents=True)
        (left / "000000").write_text("of an earlier attempt")
        runner.run(job_id)

        with sessions.begin() as session:
            assert find_trace(session, trace_id_of(job_id)).status == TraceStatus.READY
        again = queued(recording())
        replace(runner, handlers=broken_off).run(again)
        with sessions.begin() as session:
            row = find_trace(session, trace_id_of(again))
            assert (row.status, row.digest) == (TraceStatus.FAILED, None)
