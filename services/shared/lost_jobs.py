"""Jobs whose worker has stopped renewing its lease, and what becomes of them."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.shared.database.clock import NOW
from services.shared.database.rows import JobRow
from services.shared.job_events import add_final_event, add_status_event
from services.shared.job_lease import lease_expired
from services.shared.vocabulary import JobStatus


@dataclass(frozen=True)
class Reaped:
    """What became of the jobs whose worker was lost: queued again, paused as was asked, or ended."""

    requeued: tuple[str, ...]
    paused: tuple[str, ...]
    ended: tuple[str, ...]


def reap_jobs(session: Session, *, max_attempts: int) -> Reaped:
    """Take back the jobs whose worker has stopped renewing its lease.

    They are queued again, to be resumed, or paused if that was asked for; those that were to be cancelled are, and
    those without attempts left fail.
    """
    lost = select(JobRow).where(lease_expired()).with_for_update(skip_locked=True)
    became: dict[JobStatus, list[str]] = {status: [] for status in JobStatus}
    for row in session.scalars(lost):
        status = _status_of_lost(row, max_attempts)
        became[status].append(row.id)
        row.status, row.owner, row.lease_expires_at, row.seconds_left = status.value, None, None, None
        row.pause_requested = False
        if status.is_final:
            row.finished_at = session.scalar(select(NOW))
            row.error = None if status == JobStatus.CANCELLED else _worker_lost(row)
            add_final_event(session, row.id, status, row.error)
        else:
            goes_on = "is paused" if status == JobStatus.PAUSED else "goes on"
            message = f"The worker of attempt {row.attempt} was lost; the job {goes_on} from its last checkpoint."
            add_status_event(session, row.id, status, message, level="warn")
    session.flush()
    return Reaped(
        requeued=tuple(became[JobStatus.QUEUED]),
        paused=tuple(became[JobStatus.PAUSED]),
        ended=(*became[JobStatus.CANCELLED], *became[JobStatus.FAILED]),
    )


def _status_of_lost(row: JobRow, max_attempts: int) -> JobStatus:
    if row.cancel_requested:
        return JobStatus.CANCELLED
    if row.attempt >= max_attempts:
        return JobStatus.FAILED
    return JobStatus.PAUSED if row.pause_requested else JobStatus.QUEUED


def _worker_lost(row: JobRow) -> dict[str, Any]:
    where = f"in phase {row.phase!r} at step {row.step}" if row.phase else "before it began"
    return {
        "type": "server_error",
        "code": "worker_lost",
        "message": f"The worker was lost in each of {row.attempt} attempts, last {where}. Was it out of memory? Then "
        "try a smaller batch_size or max_length, look into the worker's log, and submit the job again.",
    }
