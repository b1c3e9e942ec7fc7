"""What a job's user may ask for at any time: cancel it, pause it, resume it.

A queued or paused job changes at once. A running one is its worker's: the wish is noted in its row, and the worker
sees it within a step. Every function is one or two statements inside the caller's transaction.
"""

from typing import Any, Final

from sqlalchemy import case, or_, update
from sqlalchemy.orm import Session

from services.shared.database.clock import NOW
from services.shared.database.rows import JobRow
from services.shared.errors import Conflict
from services.shared.job_events import PAUSED, add_event, add_final_event, add_status_event
from services.shared.jobs import find_job
from services.shared.vocabulary import FINAL_JOB_STATUSES, HELD_JOB_STATUSES, JobStatus

_RESTING: Final = (JobStatus.QUEUED.value, JobStatus.PAUSED.value)


def request_cancel(session: Session, job_id: str) -> JobRow:
    """Cancel a queued or paused job at once; ask a running one to stop, which takes it a step. Conflict if it has
    ended."""
    is_resting = JobRow.status.in_(_RESTING)
    row = _change_unfinished(
        session,
        job_id,
        cancel_requested=True,
        status=case((is_resting, JobStatus.CANCELLED.value), else_=JobRow.status),
        finished_at=case((is_resting, NOW), else_=JobRow.finished_at),
    )
    if row.status == JobStatus.CANCELLED:
        add_final_event(session, job_id, JobStatus.CANCELLED, None)
    else:
        add_event(session, job_id, "Cancelling was asked for.")
    return row


def request_pause(session: Session, job_id: str) -> JobRow:
    """Pause a queued job at once; ask a running one to keep its state and stop, which takes it a step.

    A paused job stays as it is. Conflict if the job has ended or is being cancelled.
    """
    was_paused = find_job(session, job_id).status == JobStatus.PAUSED
    is_held = JobRow.status.in_(HELD_JOB_STATUSES)
    row = _change_unfinished(
        session,
        job_id,
        pause_requested=is_held,
        status=case((is_held, JobRow.status), else_=JobStatus.PAUSED.value),
    )
    if row.cancel_requested:
        raise Conflict("The job is being cancelled.", param="job", code="job_is_being_cancelled")
    if JobStatus(row.status).is_held:
        add_event(session, job_id, "Pausing was asked for.")
    elif not was_paused:
        add_status_event(session, job_id, JobStatus.PAUSED, PAUSED)
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
        add_status_event(session, job_id, JobStatus.QUEUED, "The job is queued again.")
    else:
        add_event(session, job_id, "The pause was taken back.")
    return row


def _change_unfinished(session: Session, job_id: str, **values: Any) -> JobRow:
    """The job's row after the change. NotFound, or Conflict when the job has ended."""
    find_job(session, job_id)
    change = update(JobRow).where(JobRow.id == job_id, JobRow.status.not_in(FINAL_JOB_STATUSES)).values(**values)
    changed = session.scalars(change.returning(JobRow), execution_options={"populate_existing": True})
    row = changed.one_or_none()
    if row is None:
        status = find_job(session, job_id).status
        raise Conflict(f"The job has already ended: it is {status}.", param="job", code="job_is_final")
    return row
