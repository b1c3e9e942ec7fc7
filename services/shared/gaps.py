"""Gaps as rows: found, and changed by people and by the jobs that close them.

A gap is open until someone dismisses it, merges it into another or releases an expert for it; each of these is one
compare-and-set statement, so of two who decide at once one is told that it is decided. While a job is making an expert
for a gap, that job alone decides. What an analysis writes is in trainer_worker/gap_analysis. Every function works
inside the caller's transaction.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select, tuple_, update
from sqlalchemy.orm import Session

from services.shared.database.clock import NOW
from services.shared.database.rows import GapRequestRow, GapRow, JobRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.vocabulary import FINAL_JOB_STATUSES, GapStatus, JobKind

_LOCK: Final = 4_142_019
"""Any number of our own: analyses write one after the other, and nobody merges meanwhile."""


def lock_gaps(session: Session) -> None:
    """Until the end of the transaction, against analyses and merges."""
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def find_gap(session: Session, gap_id: str) -> GapRow:
    """The gap, or NotFound."""
    row = session.get(GapRow, gap_id, populate_existing=True)
    if row is None:
        raise NotFound(f"No gap {gap_id[:80]!r}. GET /gaps lists them.", param="gap", code="gap_not_found")
    return row


def list_gaps(
    session: Session, *, limit: int, after: str | None = None, status: GapStatus | None = None
) -> list[GapRow]:
    """Those seen last first; those after gap `after` in that order, if given."""
    query = select(GapRow).order_by(GapRow.last_seen_at.desc(), GapRow.id.desc()).limit(limit)
    if after is not None:
        last = find_gap(session, after)
        query = query.where(tuple_(GapRow.last_seen_at, GapRow.id) < tuple_(last.last_seen_at, last.id))
    if status is not None:
        query = query.where(GapRow.status == status.value)
    return list(session.scalars(query))


def requests_of_gap(session: Session, gap_id: str, *, limit: int) -> list[str]:
    """Ids of the requests that belong to it."""
    query = select(GapRequestRow.request_id).where(GapRequestRow.gap_id == gap_id)
    return list(session.scalars(query.order_by(GapRequestRow.request_id).limit(limit)))


def dismiss_gap(session: Session, gap_id: str) -> GapRow:
    """It is none, or nobody's concern: analyses will not show it again. Conflict unless it is open and no job is making
    an expert for it."""
    hold_open_gap(session, gap_id)
    return _change_open(session, gap_id, status=GapStatus.DISMISSED.value)


def close_gap(session: Session, gap_id: str, *, job_id: str, release: str | None) -> GapRow:
    """An expert was released for it, by that job in that release. Conflict unless it is open."""
    return _change_open(
        session,
        gap_id,
        status=GapStatus.CLOSED.value,
        closed_by_job=job_id,
        closed_by_release=release,
        closed_at=NOW,
    )


def hold_open_gap(session: Session, gap_id: str) -> GapRow:
    """The gap, locked until the end of the transaction, so that of two jobs for it the second one's submission sees the
    first, and so does who would dismiss or merge it. NotFound; Conflict where it is not open, or a job is making an
    expert for it."""
    return _hold_open(session, gap_id, param="gap")


def merge_gap(session: Session, gap_id: str, into: str) -> GapRow:
    """Its requests become another gap's, now and in later analyses; the other one.

    Conflict unless both are open and no job is making an expert for either: that expert is made of what the gap is now,
    and closes it with all its requests.
    """
    if gap_id == into:
        raise InvalidRequest(f"{gap_id} cannot be merged into itself: name another gap.", param="into")
    lock_gaps(session)
    _hold_open(session, into, param="into")
    _hold_open(session, gap_id, param="gap")
    merged = _change_open(session, gap_id, status=GapStatus.MERGED.value, merged_into=into)
    session.execute(update(GapRequestRow).where(GapRequestRow.gap_id == gap_id).values(gap_id=into))
    session.execute(update(GapRow).where(GapRow.merged_into == gap_id).values(merged_into=into))
    return _change_open(
        session,
        into,
        num_prompts=GapRow.num_prompts + merged.num_prompts,
        last_seen_at=func.greatest(GapRow.last_seen_at, merged.last_seen_at),
    )


def _hold_open(session: Session, gap_id: str, *, param: str) -> GapRow:
    session.execute(select(GapRow.id).where(GapRow.id == gap_id).with_for_update())
    row = find_gap(session, gap_id)
    if row.status != GapStatus.OPEN:
        raise _decided(row, param=param)
    at_work = select(JobRow.id).where(
        JobRow.kind == JobKind.EXPERT_CREATION.value,
        JobRow.status.not_in(FINAL_JOB_STATUSES),
        JobRow.spec["gap"].astext == gap_id,
    )
    if (job_id := session.scalar(at_work.limit(1))) is not None:
        raise Conflict(
            f"{job_id} is making an expert for {gap_id}: wait for it, or cancel it.", param=param, code="gap_in_work"
        )
    return row


def _change_open(session: Session, gap_id: str, **values: ColumnElement[Any] | Any) -> GapRow:
    changes: Mapping[str, Any] = {**values, "updated_at": NOW}
    statement = update(GapRow).where(GapRow.id == gap_id, GapRow.status == GapStatus.OPEN.value).values(changes)
    row = session.scalar(statement.returning(GapRow).execution_options(populate_existing=True))
    if row is None:
        raise _decided(find_gap(session, gap_id), param="gap")
    return row


def _decided(row: GapRow, *, param: str) -> Conflict:
    match GapStatus(row.status):
        case GapStatus.MERGED:
            how = f"was merged into {row.merged_into}: name that one"
        case GapStatus.CLOSED:
            how = f"was closed by {row.closed_by_job}: what is still flagged becomes a new gap with the next analysis"
        case _:
            how = "was dismissed: GET /gaps?status=open lists those that are open"
    return Conflict(f"{row.id} is no longer open, it {how}.", param=param, code="gap_not_open")
