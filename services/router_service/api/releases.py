"""`/releases`: what is served together, and which of them is active."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, File, UploadFile
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.release_archive import archive_bytes, describe_release, write_archive
from services.router_service.release_comparison import compare_releases, released_expert
from services.router_service.release_import import ReleaseImport
from services.router_service.release_making import make_release
from services.router_service.schemas.comparison import ReleaseComparison
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.registry import (
    Activation,
    IfActive,
    Release,
    ReleaseGraph,
    ReleaseRequest,
    release_number,
)
from services.shared.database.rows import ReleaseRow
from services.shared.errors import NotFound
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.registry import find_release, list_releases, set_evaluation
from services.shared.release_activation import UNSET, Unset, activate_release, release_before, rollback_release
from services.shared.release_evaluation import Evaluation, stored_evaluation
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
    tolerance = None if body is not None and body.force else resources.settings.releases.regression_tolerance
    row = await resources.transactions.run(
        activate_release, number, expected_active=_expected(body), tolerance=tolerance
    )
    await resources.catalog.try_refresh()
    return shown(row)


@router.post("/rollback")
async def rollback(resources: ResourcesDep, body: Annotated[IfActive | None, Body()] = None) -> Release:
    """Activate the release that was active before this one, however it was evaluated; again: the one before that."""
    active, before = await resources.transactions.run(release_before)
    if before is not None:
        await resources.catalog.check(before)
    expected = _expected(body)
    row = await resources.transactions.run(rollback_release, expected_active=active if expected is UNSET else expected)
    await resources.catalog.try_refresh()
    return shown(row)


@router.get(
    "/{release_id}/export",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
            "description": "manifest.json and every file of the release's artifacts, for `POST /releases/import`.",
        }
    },
)
async def export_release(release_id: str, resources: ResourcesDep) -> StreamingResponse:
    """The release as one archive; the same release gives the same bytes."""
    row = await resources.transactions.run(find_release, numbered(release_id))
    manifest = await asyncio.to_thread(describe_release, row, resources.storage)
    headers = {
        "content-length": str(archive_bytes(manifest)),
        "content-disposition": f'attachment; filename="{row.id}.tar"',
    }
    return StreamingResponse(
        write_archive(manifest, resources.storage), media_type="application/x-tar", headers=headers
    )


@router.post("/import", status_code=201)
async def import_release(
    archive: Annotated[UploadFile, File(description="What `GET /releases/{id}/export` gave, here or elsewhere.")],
    resources: ResourcesDep,
) -> Release:
    """Take in a release whole or not at all: every digest is verified, every adapter by a replica. It is staged."""
    importer = ReleaseImport(
        transactions=resources.transactions,
        storage=resources.storage,
        replicas=resources.replicas,
        check_release=resources.catalog.read,
    )
    row = await importer.run(archive.file)
    await resources.catalog.try_refresh()
    return shown(row)


@router.get("/{release_id}/graph")
async def get_graph(release_id: str, resources: ResourcesDep) -> ReleaseGraph:
    """The release's cooperation graph over its experts; 404 where it has none."""
    row = await resources.transactions.run(find_release, numbered(release_id))
    if row.graph_digest is None:
        raise NotFound(f"{row.id} has no cooperation graph.", param="release", code="graph_not_found")
    folder = resources.storage.artifact(row.graph_digest)
    graph = await asyncio.to_thread(CooperationGraph.load, folder)
    shown_graph = graph.over([column.version.expert_name for column in row.experts])
    return ReleaseGraph(
        release=row.id,
        digest=row.graph_digest,
        experts=list(shown_graph.experts),
        adjacency=shown_graph.adjacency_EE.tolist(),
        sparsity=shown_graph.sparsity,
    )


@router.put("/{release_id}/evaluation")
async def put_evaluation(release_id: str, body: Evaluation, resources: ResourcesDep) -> Release:
    """Say how good a release is. What it serves, and so its digest, stays as it is."""
    return shown(await resources.transactions.run(set_evaluation, numbered(release_id), body))


@router.get("/{release_id}/compare/{other_id}")
async def compare(release_id: str, other_id: str, resources: ResourcesDep) -> ReleaseComparison:
    """What differs from the first release to the second: experts, router and its settings, graph, losses."""
    numbers = numbered(release_id), numbered(other_id)
    a, b = await resources.transactions.run(_find_both, numbers)
    tolerance = resources.settings.releases.regression_tolerance
    return await asyncio.to_thread(compare_releases, a, b, storage=resources.storage, tolerance=tolerance)


def numbered(release_id: str) -> int:
    """The number in `release-7`; NotFound for what is no release's name."""
    number = release_number(release_id)
    if not number:
        raise NotFound(f"No release {release_id[:80]!r}.", param="release", code="release_not_found")
    return number


def _expected(body: IfActive | None) -> int | Unset | None:
    if body is None or "if_active" not in body.model_fields_set:
        return UNSET
    return None if body.if_active is None else numbered(body.if_active)


def _find_both(session: Session, numbers: tuple[int, int]) -> tuple[ReleaseRow, ReleaseRow]:
    return find_release(session, numbers[0]), find_release(session, numbers[1])


def shown(row: ReleaseRow) -> Release:
    """The row as the API tells it."""
    return Release(
        id=row.id,
        digest=row.content.digest,
        status=VersionStatus(row.status),
        base_model=model_name(row.base_model),
        base_fingerprint=row.base_fingerprint,
        router_digest=row.router_digest,
        router_kind=row.router_kind,
        graph_digest=row.graph_digest,
        calibration_digest=row.calibration_digest,
        experts=[released_expert(column.version) for column in row.experts],
        evaluation=stored_evaluation(row.evaluation),
        note=row.note,
        created_at=row.created_at,
        activated_at=row.activated_at,
    )
