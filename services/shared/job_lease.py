"""What the worker that runs a job may do: claim it, keep it by a lease, report, let go of it or end it.

Every function is one or two statements inside the caller's transaction. What only the owner of a job may do is
conditional on being the owner, so a worker that was taken for dead cannot write over its successor. Times are the
database's, so workers' clocks do not matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Row, and_, case, func, or_, select, update
from sqlalchemy.orm import Session

from services.shared.database.clock import NOW
from services.shared.database.rows import JobRow
from services.shared.job_events import PAUSED, add_event, add_final_event, add_status_event
from services.shared.schemas.jobs import JobProgress
from services.shared.vocabulary import HELD_JOB_STATUSES, JobStatus


@dataclass(frozen=True)
class Lease:
    """What a heartbeat learns: whether the job is still ours, and whether its user wants it cancelled or paused."""

    held: bool
    cancel_requested: bool
    pause_requested: bool


def claim_job(session: Session, job_id: str, *, owner: str, lease_s: float, max_attempts: int) -> JobRow | None:
    """Make `owner` the one who validates and runs the job, for `lease_s` from now; None when it is not to be had.

    To be had is a job that is queued, or whose worker has not renewed its lease, and that has attempts left. One
    statement: of any number of workers, one gets it.
    """
    claim = (
        update(JobRow)
        .where(JobRow.id == job_id, _to_be_had(max_attempts))
        .values(
            status=JobStatus.VALIDATING.value,
            owner=owner,
            lease_expires_at=_in(lease_s),
            attempt=JobRow.attempt + 1,
            started_at=func.coalesce(JobRow.started_at, NOW),
            phase="validating",
            seconds_left=None,
        )
        .returning(JobRow)
    )
    row = session.scalar(claim, execution_options={"populate_existing": True})
    if row is not None:
        data = {"status": row.status, "attempt": row.attempt}
        add_event(session, job_id, f"Attempt {row.attempt} started.", type="status", data=data)
    return row


def begin_work(session: Session, job_id: str, *, owner: str) -> bool:
    """From validating to running; False, and nothing written, when the job is no longer the owner's."""
    begin = update(JobRow).where(_owned_by(job_id, owner), JobRow.status == JobStatus.VALIDATING.value)
    begun = _changed(session, begin, status=JobStatus.RUNNING.value, phase="starting")
    if begun:
        add_status_event(session, job_id, JobStatus.RUNNING, "The job is valid, and runs.")
    return begun


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
    running = update(JobRow).where(JobRow.owner == owner, JobRow.status.in_(HELD_JOB_STATUSES))
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


def record_checkpoints(session: Session, job_id: str, *, owner: str, checkpoints: Sequence[Mapping[str, Any]]) -> None:
    """Write which checkpoints the job has published and still has, if it is the owner's."""
    session.execute(update(JobRow).where(_owned_by(job_id, owner)).values(checkpoints=list(map(dict, checkpoints))))


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
        finished_at=NOW,
    )
    if ended:
        add_final_event(session, job_id, status, error)
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
        add_status_event(session, job_id, JobStatus.PAUSED, PAUSED)
    elif status is not None:
        message = "The worker shuts down; another goes on from the last checkpoint."
        add_status_event(session, job_id, JobStatus.QUEUED, message)
    return status is not None


def lease_expired() -> ColumnElement[bool]:
    return and_(JobRow.status.in_(HELD_JOB_STATUSES), JobRow.lease_expires_at < NOW)


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
        or_(JobRow.status == JobStatus.QUEUED.value, lease_expired()),
    )


def _owned_by(job_id: str, owner: str) -> ColumnElement[bool]:
    return and_(JobRow.id == job_id, JobRow.owner == owner, JobRow.status.in_(HELD_JOB_STATUSES))


def _in(seconds: float) -> ColumnElement[Any]:
    return NOW + timedelta(seconds=seconds)


def _changed(session: Session, statement: Any, **values: Any) -> bool:
    result = cast("CursorResult[Any]", session.execute(statement.values(**values)))
    return result.rowcount == 1
