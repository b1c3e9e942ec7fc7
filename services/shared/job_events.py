"""What happened in a job, in order: told to whoever watches it, and kept."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.shared.database.rows import JobEventRow
from services.shared.vocabulary import JobStatus

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics", "status"]
PAUSED: Final = "The job is paused, and goes on from where it is when it is resumed."


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


def add_status_event(
    session: Session, job_id: str, status: JobStatus, message: str, *, level: EventLevel = "info"
) -> None:
    """Tell the job's new status."""
    add_event(session, job_id, message, level=level, type="status", data={"status": status.value})


def add_final_event(session: Session, job_id: str, status: JobStatus, error: Mapping[str, Any] | None) -> None:
    """Tell how the job ended, with the reason of a failed one."""
    message = f"The job {status.value}." if status != JobStatus.CANCELLED else "The job was cancelled."
    data: dict[str, Any] = {"status": status.value}
    if error is not None:
        message, data = f"The job failed: {error['message']}", data | {"error": dict(error)}
    level: EventLevel = "error" if status == JobStatus.FAILED else "info"
    add_event(session, job_id, message, level=level, type="status", data=data)
