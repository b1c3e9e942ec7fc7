"""`/storage`: what lies on disk and is of no more use."""

from typing import Annotated

from fastapi import APIRouter, Body

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.garbage import CollectedGarbage, GarbagePiece, GarbageRequest
from services.shared.garbage import Piece, collect_garbage, find_garbage, forget_unused_files

router = APIRouter(prefix="/storage", tags=["storage"], responses=ERRORS)


@router.post("/gc")
async def collect(resources: ResourcesDep, body: Annotated[GarbageRequest | None, Body()] = None) -> CollectedGarbage:
    """Remove artifacts and uploads that no release, expert, trace or job refers to; by default only tell which."""
    asked = body or GarbageRequest()
    run, storage = resources.transactions.run, resources.storage
    grace_s = asked.grace_s or resources.settings.storage.garbage_grace_s
    if asked.dry_run:
        garbage = await run(find_garbage, storage, grace_s=grace_s, with_unused_files=asked.unused_files)
    else:
        if asked.unused_files:
            await run(forget_unused_files, grace_s=grace_s)
        garbage = await run(collect_garbage, storage, grace_s=grace_s)
    return CollectedGarbage(
        dry_run=asked.dry_run,
        artifacts=[_shown(piece) for piece in garbage.artifacts],
        uploads=[_shown(piece) for piece in garbage.uploads],
        num_bytes=sum(piece.num_bytes for piece in (*garbage.artifacts, *garbage.uploads)),
    )


def _shown(piece: Piece) -> GarbagePiece:
    return GarbagePiece(id=piece.id, num_bytes=piece.num_bytes)
