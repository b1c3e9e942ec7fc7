"""Trace rows: made with a job, finished with it, failed with it."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import JobRow
from services.shared.errors import Conflict, NotFound
from services.shared.garbage import find_garbage
from services.shared.job_control import request_cancel
from services.shared.jobs import create_job
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.shared.storage import Storage
from services.shared.traces_registry import (
    create_trace,
    delete_trace,
    find_ready_trace,
    find_trace,
    finish_trace,
    list_traces,
    trace_id_of,
)
from services.shared.vocabulary import JobStatus, TraceStatus
from tests.integration.shared.test_garbage import GRACE_S, publish_old

pytestmark = pytest.mark.integration

Sessions = sessionmaker[Session]


def traced(sessions: Sessions, name: str = "five domains") -> str:
    """The id of a job with a trace; any kind of job does."""
    with sessions.begin() as session:
        job_id = create_job(session, GapAnalysisJobSpec()).id
        create_trace(session, job_id=job_id, name=name)
    return job_id


def end(sessions: Sessions, job_id: str, status: JobStatus, error: dict[str, Any] | None = None) -> None:
    with sessions.begin() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(status=status.value, error=error))


class TestTracesRegistry:
    def test_a_trace_is_importing_until_its_job_finishes_it(self, sessions: Sessions) -> None:
        job_id = traced(sessions)
        trace_id = trace_id_of(job_id)

        with sessions.begin() as session:
            assert find_trace(session, trace_id).status == TraceStatus.IMPORTING
            with pytest.raises(Conflict, match="is not ready"):
                find_ready_trace(session, trace_id)
            with pytest.raises(Conflict, match="is at work"):
                delete_trace(session, trace_id)
            finish_trace(
                session, job_id=job_id, digest="a" * 64, analysis_digest="b" * 64, description={"source": "native"}
            )
        with sessions() as session:
            row = find_ready_trace(session, trace_id)

        assert (row.name, row.source, row.digest) == ("five domains", "native", "a" * 64)

    def test_a_trace_fails_with_its_job(self, sessions: Sessions) -> None:
        job_id = traced(sessions)
        reason = {"message": "line 3 is not JSON", "type": "t", "param": None, "code": "c"}
        end(sessions, job_id, JobStatus.FAILED, reason)

        with sessions.begin() as session:
            row = find_trace(session, trace_id_of(job_id))
            assert row.status == TraceStatus.FAILED
            assert row.error == reason
            with pytest.raises(Conflict, match="line 3 is not JSON"):
                find_ready_trace(session, row.id)

    def test_a_trace_whose_job_was_cancelled_says_so(self, sessions: Sessions) -> None:
        job_id = traced(sessions)
        with sessions.begin() as session:
            request_cancel(session, job_id)

        with sessions.begin() as session:
            (row,) = list_traces(session, limit=10, status=TraceStatus.FAILED)

        assert row.error is not None
        assert row.error["code"] == "job_cancelled"

    def test_a_finished_trace_stays_ready_whatever_its_job_says(self, sessions: Sessions) -> None:
        job_id = traced(sessions)
        with sessions.begin() as session:
            finish_trace(
                session, job_id=job_id, digest="a" * 64, analysis_digest="b" * 64, description={"source": "native"}
            )
        end(sessions, job_id, JobStatus.SUCCEEDED)

        with sessions.begin() as session:
            assert find_trace(session, trace_id_of(job_id)).status == TraceStatus.READY

    def test_lists_are_newest_first_in_pages(self, sessions: Sessions) -> None:
        ids = [trace_id_of(traced(sessions, name)) for name in ("one", "two", "three")]

        with sessions.begin() as session:
            first = [row.id for row in list_traces(session, limit=2)]
            rest = [row.id for row in list_traces(session, limit=2, after=first[-1])]

        assert first + rest == ids[::-1]

    def test_a_deleted_trace_is_gone(self, sessions: Sessions) -> None:
        job_id = traced(sessions)
        end(sessions, job_id, JobStatus.FAILED)

        with sessions.begin() as session:
            delete_trace(session, trace_id_of(job_id))
            with pytest.raises(NotFound):
                find_trace(session, trace_id_of(job_id))

    def test_artifacts_of_a_trace_stay_until_it_is_deleted(self, sessions: Sessions, storage: Storage) -> None:
        digests = [publish_old(storage, content) for content in ("trace", "analysis")]
        job_id = traced(sessions)
        with sessions.begin() as session:
            finish_trace(
                session,
                job_id=job_id,
                digest=digests[0],
                analysis_digest=digests[1],
                description={"source": "native"},
            )
        with sessions.begin() as session:
            kept = find_garbage(session, storage, grace_s=GRACE_S, with_unused_files=False)
            delete_trace(session, trace_id_of(job_id))
            gone = find_garbage(session, storage, grace_s=GRACE_S, with_unused_files=False)

        assert kept.artifacts == ()
        assert {piece.id for piece in gone.artifacts} == set(digests)
