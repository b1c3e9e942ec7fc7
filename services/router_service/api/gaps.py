"""`/gaps`: what the mixture was asked for and could not answer well."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.gaps import ClosedBy, Gap, GapDetail, Merge
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.shared import gaps
from services.shared.database.rows import GapRow
from services.shared.vocabulary import GapStatus

router = APIRouter(prefix="/gaps", tags=["gaps"], responses=ERRORS)

_MOST_REQUESTS: Final = 1000


@router.get("")
async def list_gaps(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    status: Annotated[GapStatus | None, Query(description="Only these.")] = None,
) -> Listing[Gap]:
    """Those that were met last first. Jobs of kind `gap_analysis` find them, one every now and then by itself."""
    rows = await resources.transactions.run(gaps.list_gaps, limit=limit + 1, after=after, status=status)
    return page(rows, limit, shown)


@router.get("/{gap_id}")
async def get_gap(gap_id: str, resources: ResourcesDep) -> GapDetail:
    """One gap: typical prompts, measured losses, and the data that an expert for it would need."""

    def read(session: Session) -> GapDetail:
        row = gaps.find_gap(session, gap_id)
        requests = gaps.requests_of_gap(session, gap_id, limit=_MOST_REQUESTS)
        return GapDetail(**_fields(row), job=row.job_id, report=row.report, requests=requests)

    return await resources.transactions.run(read)


@router.post("/{gap_id}/dismiss")
async def dismiss(gap_id: str, resources: ResourcesDep) -> Gap:
    """Say that nothing is to be done about it; it does not come back. 409 unless it is open and no job is making an
    expert for it."""
    return shown(await resources.transactions.run(gaps.dismiss_gap, gap_id))


@router.post("/{gap_id}/merge")
async def merge(gap_id: str, body: Merge, resources: ResourcesDep) -> Gap:
    """Give its requests, now and in later analyses, to another gap, which is the answer. 409 unless both are open
    and no job is making an expert for either."""
    return shown(await resources.transactions.run(gaps.merge_gap, gap_id, body.into))


def shown(row: GapRow) -> Gap:
    """The row as the API tells it."""
    return Gap(**_fields(row))


def _fields(row: GapRow) -> dict[str, Any]:
    closed = None
    if row.closed_by_job is not None and row.closed_at is not None:
        closed = ClosedBy(job=row.closed_by_job, release=row.closed_by_release, at=row.closed_at)
    return {
        "id": row.id,
        "status": GapStatus(row.status),
        "merged_into": row.merged_into,
        "closed_by": closed,
        "follows": row.follows,
        "domain": row.domain,
        "expert_name": row.expert_name,
        "keywords": row.keywords,
        "num_prompts": row.num_prompts,
        "trend": row.trend,
        "release": row.release,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "last_seen_at": row.last_seen_at,
    }
