"""`/files`: training text and the like."""

import asyncio
import uuid
from typing import Annotated

from fastapi import APIRouter, Form, Query, UploadFile
from sqlalchemy import Text, and_, cast, or_, select
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import ResourcesDep
from services.router_service.schemas.files import File, Purpose
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.registry import Deleted
from services.router_service.transactions import plain_text
from services.router_service.uploads import Written, safe_filename, write_upload
from services.shared.database.rows import FileRow, JobRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.vocabulary import FINAL_JOB_STATUSES

router = APIRouter(prefix="/files", tags=["files"], responses=ERRORS)


@router.post("", status_code=201)
async def upload_file(
    file: UploadFile, purpose: Annotated[Purpose, Form(description="What it is for.")], resources: ResourcesDep
) -> File:
    """Upload a file: JSON lines of `{"text"}`, `{"prompt", "completion"}` or `{"messages"}`, or plain text."""
    file_id = f"file-{uuid.uuid4().hex}"
    target = resources.storage.upload(file_id)
    limit = resources.settings.storage.max_upload_bytes
    written = await asyncio.to_thread(write_upload, file.file, target, max_bytes=limit, what="The file")
    try:
        if not written.num_bytes:
            raise InvalidRequest("The file is empty.", param="file")
        row = await resources.transactions.run(
            _remember, file_id=file_id, purpose=purpose, filename=safe_filename(file.filename), written=written
        )
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return _shown(row)


@router.get("")
async def list_files(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    purpose: Annotated[Purpose | None, Query(description="Only these.")] = None,
) -> Listing[File]:
    """Newest first."""
    rows = await resources.transactions.run(_list, limit=limit + 1, after=after, purpose=purpose)
    return page(rows, limit, _shown)


@router.get("/{file_id}")
async def get_file(file_id: str, resources: ResourcesDep) -> File:
    """One file's record."""
    return _shown(await resources.transactions.run(find_file, file_id))


@router.delete("/{file_id}")
async def delete_file(file_id: str, resources: ResourcesDep) -> Deleted:
    """Delete a file; refused while a job that has not ended needs it."""
    await resources.transactions.run(_forget, file_id)
    await asyncio.to_thread(resources.storage.upload(file_id).unlink, missing_ok=True)
    return Deleted(id=file_id, object="file")


def find_file(session: Session, file_id: str) -> FileRow:
    """The file's row, or NotFound."""
    row = session.get(FileRow, file_id)
    if row is None:
        raise NotFound(f"No file {file_id[:80]!r}: upload it with POST /files.", param="file", code="file_not_found")
    return row


def _remember(session: Session, *, file_id: str, purpose: str, filename: str, written: Written) -> FileRow:
    row = FileRow(
        id=file_id,
        purpose=purpose,
        filename=plain_text(filename),
        num_bytes=written.num_bytes,
        sha256=written.sha256,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def _list(session: Session, *, limit: int, after: str | None, purpose: str | None) -> list[FileRow]:
    query = select(FileRow).order_by(FileRow.created_at.desc(), FileRow.id.desc()).limit(limit)
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    if after is not None:
        last = find_file(session, after)
        same_moment = and_(FileRow.created_at == last.created_at, FileRow.id < last.id)
        query = query.where(or_(FileRow.created_at < last.created_at, same_moment))
    return list(session.scalars(query))


def _forget(session: Session, file_id: str) -> None:
    row = find_file(session, file_id)
    unfinished = JobRow.status.not_in([status.value for status in FINAL_JOB_STATUSES])
    # Ids are unique enough to be looked for anywhere in a specification.
    needs_it = cast(JobRow.spec, Text).contains(row.id, autoescape=True)
    job_id = session.scalar(select(JobRow.id).where(unfinished, needs_it).limit(1))
    if job_id is not None:
        raise Conflict(f"{job_id} still needs this file: wait until it ends, or cancel it.", code="file_in_use")
    session.delete(row)


def _shown(row: FileRow) -> File:
    return File(
        id=row.id,
        purpose=row.purpose,
        filename=row.filename,
        num_bytes=row.num_bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )
