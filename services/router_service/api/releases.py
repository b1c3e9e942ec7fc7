"""`/releases`: what is served together, and which of them is active."""

from typing import Annotated

from fastapi import APIRouter, Body
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.release_making import make_release
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.registry import (
    Activation,
    Release,
    ReleaseExpert,
    ReleaseRequest,
    release_number,
)
from services.shared.database.rows import ReleaseRow
from services.shared.errors import NotFound
from services.shared.registry import UNSET, Unset, activate_release, find_release, list_releases
from services.shared.vocabulary import VersionStatus, model_name

router = APIRouter(prefix="/releases", tags=["releases"], responses=ERRORS)


@router.get("")
async def get_releases(resources: ResourcesDep, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Listing[Release]:
    """Newest first."""
    before = None if after is None else numbered(after)
    rows = await resources.transactions.run(list_releases, before=before, limit=limit + 1)
    return page(rows, limit, shown)


@router.get("/{release_id}")
async def get_release(release_id: str, resources: ResourcesDep) -> Release:
    """One release."""
    return shown(await resources.transactions.run(find_release, numbered(release_id)))


@router.post("", status_code=201)
async def post_release(body: ReleaseRequest, resources: ResourcesDep) -> Release:
    """Make a release of experts by name; it is staged until it is activated."""
    hosted = resources.replicas.base

    def make_and_check(session: Session) -> ReleaseRow:
        row = make_release(session, body, storage=resources.storage, hosted=hosted)
        resources.catalog.read(row)
        return row

    return shown(await resources.transactions.run(make_and_check))


@router.post("/{release_id}/activate")
async def activate(
    release_id: str, resources: ResourcesDep, body: Annotated[Activation | None, Body()] = None
) -> Release:
    """Serve new requests with this release; those in flight end on theirs. Activating an older one is the way back."""
    number = numbered(release_id)
    await resources.catalog.check(number)
    row = await resources.transactions.run(activate_release, number, expected_active=_expected(body))
    await resources.catalog.try_refresh()
    return shown(row)


def numbered(release_id: str) -> int:
    """The number in `release-7`; NotFound for what is no release's name."""
    number = release_number(release_id)
    if not number:
        raise NotFound(f"No release {release_id[:80]!r}.", param="release", code="release_not_found")
    return number


def _expected(body: Activation | None) -> int | Unset | None:
    if body is None or "expected_active" not in body.model_fields_set:
        return UNSET
    return None if body.expected_active is None else numbered(body.expected_active)


def shown(row: ReleaseRow) -> Release:
    """The row as the API tells it."""
    experts = [
        ReleaseExpert(name=column.version.expert_name, version=column.version.version, digest=column.version.digest)
        for column in row.experts
    ]
    return Release(
        id=row.id,
        status=VersionStatus(row.status),
        base_model=model_name(row.base_model),
        base_fingerprint=row.base_fingerprint,
        router_digest=row.router_digest,
        router_kind=row.router_kind,
        graph_digest=row.graph_digest,
        experts=experts,
        note=row.note,
        created_at=row.created_at,
        activated_at=row.activated_at,
    )
