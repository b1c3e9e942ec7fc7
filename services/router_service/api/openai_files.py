"""`/v1/files`, as OpenAI's clients speak it: the same files as `/files`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import FileResponse

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.files import Purpose
from services.router_service.schemas.listing import After
from services.router_service.schemas.openai_files import OpenAIFile, OpenAIFiles
from services.router_service.schemas.registry import Deleted
from services.shared.database.rows import FileRow
from services.shared.errors import InvalidRequest

router = APIRouter(prefix="/v1/files", tags=["openai"], responses=ERRORS)


@router.post("")
async def upload_file(
    file: UploadFile,
    purpose: Annotated[Purpose, Form(description="What it is for.")],
    resources: ResourcesDep,
    expires_after_anchor: Annotated[str | None, Form(alias="expires_after[anchor]", description="Refused.")] = None,
    expires_after_seconds: Annotated[str | None, Form(alias="expires_after[seconds]", description="Refused.")] = None,
) -> OpenAIFile:
    """Upload a file of `text`, of `prompt` and `completion`, or of `messages`: JSON lines, CSV or Parquet; or text."""
    if expires_after_anchor is not None or expires_after_seconds is not None:
        raise InvalidRequest(
            "Files here stay until they are deleted: leave expires_after out.",
            param="expires_after",
            code="unsupported_parameter",
        )
    return _shown(await resources.files.add(file.file, filename=file.filename, purpose=purpose))


@router.get("")
async def list_files(
    resources: ResourcesDep,
    limit: Annotated[int, Query(ge=1, le=10_000, description="At most so many.")] = 10_000,
    after: After = None,
    purpose: Annotated[Purpose | None, Query(description="Only these.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By age: desc has the newest first.")] = "desc",
) -> OpenAIFiles:
    """A page of them."""
    rows = await resources.files.list(limit=limit + 1, after=after, purpose=purpose, oldest_first=order == "asc")
    shown = [_shown(row) for row in rows[:limit]]
    return OpenAIFiles(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(rows) > limit,
    )


@router.get("/{file_id}")
async def get_file(file_id: str, resources: ResourcesDep) -> OpenAIFile:
    """One file's record."""
    return _shown(await resources.files.find(file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
async def file_content(file_id: str, resources: ResourcesDep) -> FileResponse:
    """Its bytes, as they were sent."""
    row, path = await resources.files.content(file_id)
    return FileResponse(path, media_type="application/octet-stream", filename=row.filename)


@router.delete("/{file_id}")
async def delete_file(file_id: str, resources: ResourcesDep) -> Deleted:
    """Delete a file; refused while a job that has not ended needs it."""
    await resources.files.remove(file_id)
    return Deleted(id=file_id, object="file")


def _shown(row: FileRow) -> OpenAIFile:
    return OpenAIFile(
        id=row.id,
        bytes=row.num_bytes,
        created_at=int(row.created_at.timestamp()),
        filename=row.filename,
        purpose=row.purpose,
    )
