"""Traces as rows: made with the job that fills them, finished in the transaction that ends it, failed if it failed.

Whatever becomes of the job - refused, cancelled, given up after its last attempt - its trace is settled the next time
that somebody looks, so no handler has to. Every function works inside the caller's transaction.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import delete, func, literal, select, tuple_, update
from sqlalchemy.orm import Session

from services.shared.database.rows import JobRow, TraceRow
from services.shared.errors import Conflict, NotFound
from services.shared.vocabulary import JobStatus, TraceStatus

_CANCELLED: Final = {
    "message": "The job was cancelled: submit it again if the trace is wanted.",
    "type": "conflict_error",
    "param": None,
    "code": "job_cancelled",
}


def trace_id_of(job_id: str) -> str:
    """A job makes one trace: `job-<hex>` makes `trace-<hex>`."""
    return f"trace-{job_id.removeprefix('job-')}"


def create_trace(session: Session, *, job_id: str, name: str) -> TraceRow:
    """A trace that a job is going to fill; in the transaction that makes the job."""
    row = TraceRow(id=trace_id_of(job_id), name=name, job_id=job_id)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def find_trace(session: Session, trace_id: str) -> TraceRow:
    """The trace, or NotFound."""
    _settle(session)
    row = session.get(TraceRow, trace_id, populate_existing=True)
    if row is None:
        raise NotFound(f"No trace {trace_id[:80]!r}. GET /traces lists them.", param="trace", code="trace_not_found")
    return row


def find_ready_trace(session: Session, trace_id: str) -> TraceRow:
    """The trace, once there is something to read in it. NotFound, or Conflict saying what is in the way."""
    row = find_trace(session, trace_id)
    match TraceStatus(row.status):
        case TraceStatus.READY:
            return row
        case TraceStatus.IMPORTING:
            reason = f"is not ready: {row.job_id} is at work on it, GET /jobs/{row.job_id} says how far it is"
        case TraceStatus.FAILED:
            reason = f"failed, so there is nothing to read in it: {(row.error or {}).get('message', 'see its job')}"
    raise Conflict(f"{row.id} {reason}", param="trace", code=f"trace_{row.status}")


def list_traces(
    session: Session, *, limit: int, after: str | None = None, status: TraceStatus | None = None
) -> list[TraceRow]:
    """Newest first; those after trace `after` in that order, if given."""
    _settle(session)
    query = select(TraceRow).order_by(TraceRow.created_at.desc(), TraceRow.id.desc()).limit(limit)
    if after is not None:
        last = find_trace(session, after)
        query = query.where(tuple_(TraceRow.created_at, TraceRow.id) < tuple_(last.created_at, last.id))
    if status is not None:
        query = query.where(TraceRow.status == status.value)
    return list(session.scalars(query))


def finish_trace(
    session: Session, *, job_id: str, digest: str, analysis_digest: str, description: Mapping[str, Any]
) -> TraceRow:
    """A job's trace is there: its artifact, that of its analysis, and what it says of itself (a TraceDescription as
    JSON, whose `source` it is listed by). In the transaction that ends the job; NotFound if the job makes none."""
    finish = (
        update(TraceRow)
        .where(TraceRow.job_id == job_id)
        .values(
            status=TraceStatus.READY.value,
            source=description["source"],
            digest=digest,
            analysis_digest=analysis_digest,
            description=dict(description),
        )
    )
    statement = finish.returning(TraceRow).execution_options(populate_existing=True)
    row: TraceRow | None = session.scalar(statement)
    if row is None:
        raise NotFound(f"{job_id} makes no trace: submit it again.", param="trace", code="trace_not_found")
    return row


def delete_trace(session: Session, trace_id: str) -> None:
    """Forget it; its artifacts are garbage then. Conflict while its job is at work."""
    row = find_trace(session, trace_id)
    if row.status == TraceStatus.IMPORTING:
        raise Conflict(
            f"{row.job_id} is at work on {row.id}: wait until it ends, or cancel it (POST /jobs/{row.job_id}/cancel).",
            param="trace",
            code="trace_importing",
        )
    session.execute(delete(TraceRow).where(TraceRow.id == row.id))


def _settle(session: Session) -> None:
    """Traces whose job has ended in vain have failed, for its reason."""
    in_vain = (JobStatus.FAILED.value, JobStatus.CANCELLED.value)
    session.execute(
        update(TraceRow)
        .where(TraceRow.status == TraceStatus.IMPORTING.value, JobRow.id == TraceRow.job_id, JobRow.status.in_(in_vain))
        .values(
            status=TraceStatus.FAILED.value, error=func.coalesce(JobRow.error, literal(_CANCELLED, JobRow.error.type))
        ),
        execution_options={"synchronize_session": False},
    )
