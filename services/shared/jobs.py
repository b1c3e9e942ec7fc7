"""Jobs as rows: the truth about them (DESIGN D6). The broker's message is only a nudge.

Every function is one or two statements inside the caller's transaction. What only the owner of a job may do is
conditional on being the owner, so a worker that was taken for dead cannot write over its successor. Times are the
database's, so workers' clocks do not matter.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, cast

from sqlalchemy import ColumnElement, CursorResult, and_, case, func, or_, select, update
from sqlalchemy.orm import Session

from services.shared.database.rows import JobEventRow, JobRow
from services.shared.errors import Conflict, NotFound
from services.shared.schemas.jobs import ExpertJobSpec, JobProgress, RouterJobSpec
from services.shared.vocabulary import FINAL_JOB_STATUSES, JobKind, JobStatus

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics", "status"]
_NOW: Final = func.clock_timestamp()


@dataclass(frozen=True)
class Lease:
    """What a heartbeat learns: whether the job is still ours, and whether its owner wants it cancelled."""

    held: bool
    cancel_requested: bool


@dataclass(frozen=True)
class Reaped:
    """What became of the jobs whose worker was lost: queued again, or ended."""

    requeued: tuple[str, ...]
    ended: tuple[str, ...]


def create_job(session: Session, spec: ExpertJobSpec | RouterJobSpec) -> JobRow:
    """A queued job. Send its message after the commit (queue.enqueue_job); a lost message is sent again by a worker."""
    row = JobRow(
        id=f"job-{uuid.uuid4().hex}",
        kind=spec.kind.value,
        status=JobStatus.QUEUED.value,
        spec=spec.model_dump(mode="json"),
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    add_event(session, row.id, "The job is queued.", type="status", data={"status": JobStatus.QUEUED.value})
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
) -> list[JobRow]:
    """Newest first; those after job `before` in that order, if given."""
    query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
    if before is not None:
        last = find_job(session, before)
        older = and_(JobRow.created_at == last.created_at, JobRow.id < last.id)
        query = query.where(or_(JobRow.created_at < last.created_at, older))
    if kind is not None:
        query = query.where(JobRow.kind == kind.value)
    if status is not None:
        query = query.where(JobRow.status == status.value)
    return list(session.scalars(query))


def list_events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> list[JobEventRow]:
    """The job's events with ids above `after`, oldest first."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.id > after)
    return list(session.scalars(query.order_by(JobEventRow.id).limit(limit)))


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    level: EventLevel = "info",
    type: EventType = "message",  # the column's name
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append to the job's history."""
    session.add(JobEventRow(job_id=job_id, level=level, type=type, message=message, data=dict(data or {})))
    session.flush()


def claim_job(session: Session, job_id: str, *, owner: str, lease_s: float, max_attempts: int) -> JobRow | None:
    """Make `owner` the one who runs the job, for `lease_s` from now; None when it is not to be had.

    To be had is a job that is queued, or whose worker has not renewed its lease, and that has attempts left. One
    statement: of any number of workers, one gets it.
    """
    claim = (
        update(JobRow)
        .where(
            JobRow.id == job_id,
            JobRow.attempt < max_attempts,
            ~JobRow.cancel_requested,
            or_(JobRow.status == JobStatus.QUEUED.value, _lease_expired()),
        )
        .values(
            status=JobStatus.RUNNING.value,
            owner=owner,
            lease_expires_at=_in(lease_s),
            attempt=JobRow.attempt + 1,
            started_at=func.coalesce(JobRow.started_at, _NOW),
            phase="starting",
            seconds_left=None,
        )
        .returning(JobRow)
    )
    row = session.scalar(claim, execution_options={"populate_existing": True})
    if row is not None:
        data = {"status": row.status, "attempt": row.attempt}
        add_event(session, job_id, f"Attempt {row.attempt} started.", type="status", data=data)
    return row


def renew_lease(session: Session, job_id: str, *, owner: str, lease_s: float) -> Lease:
    """Heartbeat: `lease_s` more from now, if the job is still the owner's."""
    renew = update(JobRow).where(_owned_by(job_id, owner)).values(lease_expires_at=_in(lease_s))
    cancel_requested = session.scalar(renew.returning(JobRow.cancel_requested))
    return Lease(held=cancel_requested is not None, cancel_requested=bool(cancel_requested))


def renew_leases(session: Session, *, owner: str, lease_s: float) -> None:
    """Heartbeat for whatever the owner runs."""
    running = update(JobRow).where(JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value)
    session.execute(running.values(lease_expires_at=_in(lease_s)))


def read_lease(session: Session, job_id: str, *, owner: str) -> Lease:
    """What `renew_lease` would learn, without renewing."""
    cancel_requested = session.scalar(select(JobRow.cancel_requested).where(_owned_by(job_id, owner)))
    return Lease(held=cancel_requested is not None, cancel_requested=bool(cancel_requested))


def record_progress(session: Session, job_id: str, *, owner: str, progress: JobProgress) -> None:
    """Write where the job is, if it is still the owner's; a phase without steps leaves those counted so far."""
    counted = None if progress.total_steps is not None else {"phase", "seconds_left"}
    values = progress.model_dump(include=counted)
    session.execute(update(JobRow).where(_owned_by(job_id, owner)).values(**values))


def hold_job(session: Session, job_id: str, *, owner: str) -> JobRow | None:
    """Lock the job's row until the end of the transaction if it is still the owner's, else None."""
    held = select(JobRow).where(_owned_by(job_id, owner)).with_for_update()
    return session.scalar(held, execution_options={"populate_existing": True})


def finish_job(
    session: Session,
    job_id: str,
    *,
    owner: str,
    status: JobStatus,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> bool:
    """End the job; False, and nothing written, when it is no longer the owner's."""
    if not status.is_final:
        raise ValueError(f"{status} is not a final status")
    ended = _changed(
        session,
        update(JobRow).where(_owned_by(job_id, owner)),
        status=status.value,
        result=dict(result) if result is not None else None,
        error=dict(error) if error is not None else None,
        owner=None,
        lease_expires_at=None,
        seconds_left=None,
        finished_at=_NOW,
    )
    if ended:
        _add_final_event(session, job_id, status, error)
    return ended


def hand_back_job(session: Session, job_id: str, *, owner: str) -> bool:
    """Queue the owner's job again without counting the attempt: the worker is shutting down."""
    handed_back = _changed(
        session,
        update(JobRow).where(_owned_by(job_id, owner)),
        status=JobStatus.QUEUED.value,
        owner=None,
        lease_expires_at=None,
        attempt=func.greatest(JobRow.attempt - 1, 0),
        seconds_left=None,
    )
    if handed_back:
        message = "The worker shuts down; another goes on from the last checkpoint."
        add_event(session, job_id, message, type="status", data={"status": JobStatus.QUEUED.value})
    return handed_back


def request_cancel(session: Session, job_id: str) -> JobRow:
    """Cancel a queued job at once; ask a running one to stop, which takes it a step. Conflict if it has ended."""
    find_job(session, job_id)
    is_queued = JobRow.status == JobStatus.QUEUED.value
    cancel = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status.not_in([status.value for status in FINAL_JOB_STATUSES]))
        .values(
            cancel_requested=True,
            status=case((is_queued, JobStatus.CANCELLED.value), else_=JobRow.status),
            finished_at=case((is_queued, _NOW), else_=JobRow.finished_at),
        )
        .returning(JobRow)
    )
    row = session.scalar(cancel, execution_options={"populate_existing": True})
    if row is None:
        status = find_job(session, job_id).status
        raise Conflict(f"The job has already ended: it is {status}.", param="job", code="job_is_final")
    if row.status == JobStatus.CANCELLED:
        _add_final_event(session, job_id, JobStatus.CANCELLED, None)
    else:
        add_event(session, job_id, "Cancelling was asked for.")
    return row


def reap_jobs(session: Session, *, max_attempts: int) -> Reaped:
    """Take back the jobs whose worker has stopped renewing its lease.

    They are queued again, to be resumed; those that were to be cancelled are, and those without attempts left fail.
    """
    lost = select(JobRow).where(_lease_expired()).with_for_update(skip_locked=True)
    requeued, ended = [], []
    for row in session.scalars(lost):
        row.owner, row.lease_expires_at, row.seconds_left = None, None, None
        if not row.cancel_requested and row.attempt < max_attempts:
            row.status = JobStatus.QUEUED.value
            requeued.append(row.id)
            message = f"The worker of attempt {row.attempt} was lost; the job goes on from its last checkpoint."
            add_event(session, row.id, message, level="warn", type="status", data={"status": row.status})
            continue
        status = JobStatus.CANCELLED if row.cancel_requested else JobStatus.FAILED
        row.status = status.value
        row.finished_at = session.scalar(select(_NOW))
        row.error = None if row.cancel_requested else _worker_lost(row)
        ended.append(row.id)
        _add_final_event(session, row.id, status, row.error)
    session.flush()
    return Reaped(requeued=tuple(requeued), ended=tuple(ended))


def waiting_jobs(session: Session, *, older_than_s: float) -> list[str]:
    """Ids of the jobs that have been queued for longer than that, oldest first."""
    since = JobRow.created_at < _NOW - timedelta(seconds=older_than_s)
    query = select(JobRow.id).where(JobRow.status == JobStatus.QUEUED.value, since)
    return list(session.scalars(query.order_by(JobRow.created_at, JobRow.id)))


def _worker_lost(row: JobRow) -> dict[str, Any]:
    where = f"in phase {row.phase!r} at step {row.step}" if row.phase else "before it began"
    return {
        "type": "server_error",
        "code": "worker_lost",
        "message": f"The worker was lost in each of {row.attempt} attempts, last {where}. Was it out of memory? Then "
        "try a smaller batch_size or max_length, look into the worker's log, and submit the job again.",
    }


def _add_final_event(session: Session, job_id: str, status: JobStatus, error: Mapping[str, Any] | None) -> None:
    message = f"The job {status.value}." if status != JobStatus.CANCELLED else "The job was cancelled."
    data: dict[str, Any] = {"status": status.value}
    if error is not None:
        message, data = f"The job failed: {error['message']}", data | {"error": dict(error)}
    level: EventLevel = "error" if status == JobStatus.FAILED else "info"
    add_event(session, job_id, message, level=level, type="status", data=data)


def _owned_by(job_id: str, owner: str) -> ColumnElement[bool]:
    return and_(JobRow.id == job_id, JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value)


def _lease_expired() -> ColumnElement[bool]:
    return and_(JobRow.status == JobStatus.RUNNING.value, JobRow.lease_expires_at < _NOW)


def _in(seconds: float) -> ColumnElement[Any]:
    return _NOW + timedelta(seconds=seconds)


def _changed(session: Session, statement: Any, **values: Any) -> bool:
    result = cast("CursorResult[Any]", session.execute(statement.values(**values)))
    return result.rowcount == 1
