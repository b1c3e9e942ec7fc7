"""Jobs as rows: the truth about them (DESIGN D6). The broker's message is only a nudge.

Here they are made and found; job_lease.py is what their worker may do, job_control.py what their user may ask for,
lost_jobs.py what becomes of those whose worker is gone. Every function is one or two statements inside the caller's
transaction.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from services.shared.database.clock import NOW
from services.shared.database.rows import JobRow
from services.shared.errors import NotFound
from services.shared.job_events import add_status_event
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.vocabulary import FINAL_JOB_STATUSES, JobKind, JobQueue, JobStatus


@dataclass(frozen=True)
class WaitingJob:
    """A queued job and the queue that its message belongs into."""

    id: str
    queue: str


def create_job(
    session: Session, spec: JobSpecBase, *, default_queue: str = JobQueue.CPU, base_fingerprint: str | None = None
) -> JobRow:
    """A queued job, for the base model of that fingerprint if one is given.

    Send its message after the commit (queue.enqueue_job); a lost message is sent again by a worker.
    """
    row = JobRow(
        id=f"job-{uuid.uuid4().hex}",
        kind=spec.kind.value,
        status=JobStatus.QUEUED.value,
        spec=spec.model_dump(mode="json"),
        queue=str(spec.queue or default_queue),
        priority=spec.priority,
        user_name=spec.user,
        base_fingerprint=base_fingerprint if spec.uses_base_model else None,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    add_status_event(session, row.id, JobStatus.QUEUED, "The job is queued.")
    return row


def find_job(session: Session, job_id: str) -> JobRow:
    """The job, or NotFound."""
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFound(f"No job {job_id[:80]!r}. GET /jobs lists them.", param="job", code="job_not_found")
    return row


def list_jobs(
    session: Session,
    *,
    limit: int,
    before: str | None = None,
    kind: JobKind | None = None,
    status: JobStatus | None = None,
    spec_holds: Mapping[str, Any] | None = None,
) -> list[JobRow]:
    """Newest first; those after job `before` in that order, if given; those whose spec contains `spec_holds`."""
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    if before is not None:
        last = find_job(session, before)
        older = and_(JobRow.created_at == last.created_at, JobRow.id < last.id)
        query = query.where(or_(JobRow.created_at < last.created_at, older))
    if kind is not None:
        query = query.where(JobRow.kind == kind.value)
    if status is not None:
        query = query.where(JobRow.status == status.value)
    if spec_holds is not None:
        query = query.where(JobRow.spec.contains(spec_holds))
    return list(session.scalars(query))


def num_unfinished(session: Session, *, user: str | None) -> int:
    """How many jobs of a user (None: of nobody in particular) have not ended."""
    query = select(func.count()).where(
        JobRow.status.not_in(FINAL_JOB_STATUSES), JobRow.user_name.is_not_distinct_from(user)
    )
    return session.scalar(query) or 0


def waiting_jobs(session: Session, *, older_than_s: float) -> list[WaitingJob]:
    """The jobs that were submitted longer ago than that and are queued, in the order of their turn."""
    since = JobRow.created_at < NOW - timedelta(seconds=older_than_s)
    query = select(JobRow.id, JobRow.queue).where(JobRow.status == JobStatus.QUEUED.value, since)
    turns = query.order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
    return [WaitingJob(job_id, queue) for job_id, queue in session.execute(turns)]
