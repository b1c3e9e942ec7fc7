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

from sqlalchemy import ColumnElement, CursorResult, Row, and_, case, func, or_, select, update
from sqlalchemy.orm import Session

from services.shared.database.rows import JobEventRow, JobRow
from services.shared.errors import Conflict, NotFound
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import JobProgress
from services.shared.vocabulary import FINAL_JOB_STATUSES, JobKind, JobQueue, JobStatus

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics", "status"]
_NOW: Final = func.clock_timestamp()
_FINAL: Final = tuple(status.value for status in FINAL_JOB_STATUSES)
_PAUSED: Final = "The job is paused, and goes on from where it is when it is resumed."
_RESTING: Final = (JobStatus.QUEUED.value, JobStatus.PAUSED.value)


@dataclass(frozen=True)
class Lease:
    """What a heartbeat learns: whether the job is still ours, and whether its user wants it cancelled or paused."""

    held: bool
    cancel_requested: bool
    pause_requested: bool


@dataclass(frozen=True)
class Reaped:
    """What became of the jobs whose worker was lost: queued again, paused as was asked, or ended."""

    requeued: tuple[str, ...]
    paused: tuple[str, ...]
    ended: tuple[str, ...]


@dataclass(frozen=True)
class WaitingJob:
    """A queued job and the queue that its message belongs into."""

    id: str
    queue: str


def create_job(session: Session, spec: JobSpecBase, *, default_queue: str = JobQueue.CPU) -> JobRow:
    """A queued job. Send its message after the commit (queue.enqueue_job); a lost message is sent again by a worker."""
    row = JobRow(
        id=f"job-{uuid.uuid4().hex}",
        kind=spec.kind.value,
        status=JobStatus.QUEUED.value,
        spec=spec.model_dump(mode="json"),
        queue=str(spec.queue or default_queue),
        priority=spec.priority,
        user_name=spec.user,
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
    query = select(func.count()).where(JobRow.status.not_in(_FINAL), JobRow.user_name.is_not_distinct_from(user))
    return session.scalar(query) or 0


def list_events(session: Session, job_id: str, *, after: int = 0, limit: int = 1000) -> list[JobEventRow]:
    """The job's events with ids above `after`, oldest first."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.id > after)
    return list(session.scalars(query.order_by(JobEventRow.id).limit(limit)))


def latest_events(session: Session, job_id: str, *, before: int | None = None, limit: int) -> list[JobEventRow]:
    """The job's events with ids below `before`, newest first."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id)
    if before is not None:
        query = query.where(JobEventRow.id < before)
    return list(session.scalars(query.order_by(JobEventRow.id.desc()).limit(limit)))


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
        .where(JobRow.id == job_id, _to_be_had(max_attempts))
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


def claim_next_job(session: Session, *, queue: str, owner: str, lease_s: float, max_attempts: int) -> JobRow | None:
    """Claim the job of `queue` whose turn it is: the highest priority first, of equal ones the oldest; None if none is.

    Workers that ask at the same moment get different jobs.
    """
    turn = (
        select(JobRow.id)
        .where(JobRow.queue == queue, _to_be_had(max_attempts))
        .order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    job_id = session.scalar(turn)
    if job_id is None:
        return None
    return claim_job(session, job_id, owner=owner, lease_s=lease_s, max_attempts=max_attempts)


def renew_lease(session: Session, job_id: str, *, owner: str, lease_s: float) -> Lease:
    """Heartbeat: `lease_s` more from now, if the job is still the owner's."""
    renew = update(JobRow).where(_owned_by(job_id, owner)).values(lease_expires_at=_in(lease_s))
    return _lease(session.execute(renew.returning(JobRow.cancel_requested, JobRow.pause_requested)).one_or_none())


def renew_leases(session: Session, *, owner: str, lease_s: float) -> None:
    """Heartbeat for whatever the owner runs."""
    running = update(JobRow).where(JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value)
    session.execute(running.values(lease_expires_at=_in(lease_s)))


def read_lease(session: Session, job_id: str, *, owner: str) -> Lease:
    """What `renew_lease` would learn, without renewing."""
    wishes = select(JobRow.cancel_requested, JobRow.pause_requested).where(_owned_by(job_id, owner))
    return _lease(session.execute(wishes).one_or_none())


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
        pause_requested=False,
        seconds_left=None,
        finished_at=_NOW,
    )
    if ended:
        _add_final_event(session, job_id, status, error)
    return ended


def hand_back_job(session: Session, job_id: str, *, owner: str) -> bool:
    """Let go of the owner's job without counting the attempt: paused if that was asked for, else queued again."""
    hand_back = (
        update(JobRow)
        .where(_owned_by(job_id, owner))
        .values(
            status=case((JobRow.pause_requested, JobStatus.PAUSED.value), else_=JobStatus.QUEUED.value),
            pause_requested=False,
            owner=None,
            lease_expires_at=None,
            attempt=func.greatest(JobRow.attempt - 1, 0),
            seconds_left=None,
        )
        .returning(JobRow.status)
    )
    status = session.scalar(hand_back)
    if status == JobStatus.PAUSED:
        _add_status_event(session, job_id, JobStatus.PAUSED, _PAUSED)
    elif status is not None:
        message = "The worker shuts down; another goes on from the last checkpoint."
        _add_status_event(session, job_id, JobStatus.QUEUED, message)
    return status is not None


def request_cancel(session: Session, job_id: str) -> JobRow:
    """Cancel a queued or paused job at once; ask a running one to stop, which takes it a step. Conflict if it has
    ended."""
    is_resting = JobRow.status.in_(_RESTING)
    row = _change_unfinished(
        session,
        job_id,
        cancel_requested=True,
        status=case((is_resting, JobStatus.CANCELLED.value), else_=JobRow.status),
        finished_at=case((is_resting, _NOW), else_=JobRow.finished_at),
    )
    if row.status == JobStatus.CANCELLED:
        _add_final_event(session, job_id, JobStatus.CANCELLED, None)
    else:
        add_event(session, job_id, "Cancelling was asked for.")
    return row


def request_pause(session: Session, job_id: str) -> JobRow:
    """Pause a queued job at once; ask a running one to keep its state and stop, which takes it a step.

    A paused job stays as it is. Conflict if the job has ended or is being cancelled.
    """
    was_paused = find_job(session, job_id).status == JobStatus.PAUSED
    is_running = JobRow.status == JobStatus.RUNNING.value
    row = _change_unfinished(
        session,
        job_id,
        pause_requested=is_running,
        status=case((is_running, JobRow.status), else_=JobStatus.PAUSED.value),
    )
    if row.cancel_requested:
        raise Conflict("The job is being cancelled.", param="job", code="job_is_being_cancelled")
    if row.status == JobStatus.RUNNING:
        add_event(session, job_id, "Pausing was asked for.")
    elif not was_paused:
        _add_status_event(session, job_id, JobStatus.PAUSED, _PAUSED)
    return row


def resume_job(session: Session, job_id: str) -> JobRow:
    """Queue a paused job again, or take back a pause that has not come about yet. Conflict if it is not paused.

    Send its message after the commit, as for a new job.
    """
    find_job(session, job_id)
    resume = (
        update(JobRow)
        .where(JobRow.id == job_id, or_(JobRow.status == JobStatus.PAUSED.value, JobRow.pause_requested))
        .values(
            pause_requested=False,
            status=case((JobRow.status == JobStatus.PAUSED.value, JobStatus.QUEUED.value), else_=JobRow.status),
        )
        .returning(JobRow)
    )
    row = session.scalar(resume, execution_options={"populate_existing": True})
    if row is None:
        status = find_job(session, job_id).status
        raise Conflict(f"The job is not paused: it is {status}.", param="job", code="job_not_paused")
    if row.status == JobStatus.QUEUED:
        _add_status_event(session, job_id, JobStatus.QUEUED, "The job is queued again.")
    else:
        add_event(session, job_id, "The pause was taken back.")
    return row


def reap_jobs(session: Session, *, max_attempts: int) -> Reaped:
    """Take back the jobs whose worker has stopped renewing its lease.

    They are queued again, to be resumed, or paused if that was asked for; those that were to be cancelled are, and
    those without attempts left fail.
    """
    lost = select(JobRow).where(_lease_expired()).with_for_update(skip_locked=True)
    became: dict[JobStatus, list[str]] = {status: [] for status in JobStatus}
    for row in session.scalars(lost):
        status = _status_of_lost(row, max_attempts)
        became[status].append(row.id)
        row.status, row.owner, row.lease_expires_at, row.seconds_left = status.value, None, None, None
        row.pause_requested = False
        if status.is_final:
            row.finished_at = session.scalar(select(_NOW))
            row.error = None if status == JobStatus.CANCELLED else _worker_lost(row)
            _add_final_event(session, row.id, status, row.error)
        else:
            goes_on = "is paused" if status == JobStatus.PAUSED else "goes on"
            message = f"The worker of attempt {row.attempt} was lost; the job {goes_on} from its last checkpoint."
            _add_status_event(session, row.id, status, message, level="warn")
    session.flush()
    return Reaped(
        requeued=tuple(became[JobStatus.QUEUED]),
        paused=tuple(became[JobStatus.PAUSED]),
        ended=(*became[JobStatus.CANCELLED], *became[JobStatus.FAILED]),
    )


def waiting_jobs(session: Session, *, older_than_s: float) -> list[WaitingJob]:
    """The jobs that were submitted longer ago than that and are queued, in the order of their turn."""
    since = JobRow.created_at < _NOW - timedelta(seconds=older_than_s)
    query = select(JobRow.id, JobRow.queue).where(JobRow.status == JobStatus.QUEUED.value, since)
    turns = query.order_by(JobRow.priority.desc(), JobRow.created_at, JobRow.id)
    return [WaitingJob(job_id, queue) for job_id, queue in session.execute(turns)]


def _status_of_lost(row: JobRow, max_attempts: int) -> JobStatus:
    if row.cancel_requested:
        return JobStatus.CANCELLED
    if row.attempt >= max_attempts:
        return JobStatus.FAILED
    return JobStatus.PAUSED if row.pause_requested else JobStatus.QUEUED


def _change_unfinished(session: Session, job_id: str, **values: Any) -> JobRow:
    """The job's row after the change. NotFound, or Conflict when the job has ended."""
    find_job(session, job_id)
    change = update(JobRow).where(JobRow.id == job_id, JobRow.status.not_in(_FINAL)).values(**values)
    changed = session.scalars(change.returning(JobRow), execution_options={"populate_existing": True})
    row = changed.one_or_none()
    if row is None:
        status = find_job(session, job_id).status
        raise Conflict(f"The job has already ended: it is {status}.", param="job", code="job_is_final")
    return row


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


def _add_status_event(
    session: Session, job_id: str, status: JobStatus, message: str, *, level: EventLevel = "info"
) -> None:
    add_event(session, job_id, message, level=level, type="status", data={"status": status.value})


def _lease(wishes: Row[bool, bool] | None) -> Lease:
    if wishes is None:
        return Lease(held=False, cancel_requested=False, pause_requested=False)
    cancel_requested, pause_requested = wishes
    return Lease(held=True, cancel_requested=cancel_requested, pause_requested=pause_requested)


def _to_be_had(max_attempts: int) -> ColumnElement[bool]:
    return and_(
        JobRow.attempt < max_attempts,
        ~JobRow.cancel_requested,
        ~JobRow.pause_requested,
        or_(JobRow.status == JobStatus.QUEUED.value, _lease_expired()),
    )


def _owned_by(job_id: str, owner: str) -> ColumnElement[bool]:
    return and_(JobRow.id == job_id, JobRow.owner == owner, JobRow.status == JobStatus.RUNNING.value)


def _lease_expired() -> ColumnElement[bool]:
    return and_(JobRow.status == JobStatus.RUNNING.value, JobRow.lease_expires_at < _NOW)


def _in(seconds: float) -> ColumnElement[Any]:
    return _NOW + timedelta(seconds=seconds)


def _changed(session: Session, statement: Any, **values: Any) -> bool:
    result = cast("CursorResult[Any]", session.execute(statement.values(**values)))
    return result.rowcount == 1
