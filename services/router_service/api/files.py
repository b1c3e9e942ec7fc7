"""`/files`: training text and the like."""

import asyncio
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Form, Query, UploadFile

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.files import File, HubFileRequest, Purpose
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.registry import Deleted
from services.shared.database.rows import FileRow

router = APIRouter(prefix="/files", tags=["files"], responses=ERRORS)


@router.post("", status_code=201)
async def upload_file(
    file: UploadFile, purpose: Annotated[Purpose, Form(description="What it is for.")], resources: ResourcesDep
) -> File:
    """Upload a file of `text`, of `prompt` and `completion`, or of `messages`: JSON lines, CSV or Parquet; or text."""
    return _shown(await resources.files.add(file.file, filename=file.filename, purpose=purpose))


@router.post("/from_hub", status_code=201)
async def fetch_file(body: HubFileRequest, resources: ResourcesDep) -> File:
    """Fetch a file of a public dataset on a Hugging Face hub, as if it were uploaded: it stays as it is now."""
    hub, limit = resources.hub_datasets, resources.settings.storage.max_upload_bytes
    file = await asyncio.to_thread(hub.find, body.dataset, path=body.path, revision=body.revision, max_bytes=limit)
    with ExitStack() as stack:
        content = await asyncio.to_thread(stack.enter_context, hub.open(file))
        return _shown(await resources.files.add(content, filename=file.name, purpose=body.purpose))


@router.get("")
async def list_files(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    purpose: Annotated[Purpose | None, Query(description="Only these.")] = None,
) -> Listing[File]:
    """Newest first."""
    return page(await resources.files.list(limit=limit + 1, after=after, purpose=purpose), limit, _shown)


@router.get("/{file_id}")
async def get_file(file_id: str, resources: ResourcesDep) -> File:
    """One file's record."""
    return _shown(await resources.files.find(file_id))


@router.delete("/{file_id}")
async def delete_file(file_id: str, resources: ResourcesDep) -> Deleted:
    """Delete a file; refused while a job that has not ended needs it."""
    await resources.files.remove(file_id)
    return Deleted(id=file_id, object="file")


def _shown(row: FileRow) -> File:
    return File(
        id=row.id,
        purpose=row.purpose,
        filename=row.filename,
        num_bytes=row.num_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )
