"""Uploaded files: the bytes in storage, the record in Postgres. Both APIs that take files go through here."""

import asyncio
import uuid
from pathlib import Path
from typing import Final

from sqlalchemy import Text, and_, cast, or_, select
from sqlalchemy.orm import Session

from services.router_service.transactions import Transactions, plain_text
from services.router_service.uploads import Source, Written, safe_filename, safe_path, write_upload
from services.shared.database.rows import FileRow, JobRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.storage import Storage
from services.shared.vocabulary import FINAL_JOB_STATUSES

TRACE_PURPOSE: Final = "trace"
"""Recordings of routing: they are deleted with their trace."""


class FileStore:
    """Takes, finds and forgets files."""

    def __init__(self, transactions: Transactions, storage: Storage, *, max_bytes: int) -> None:
        self._transactions = transactions
        self._storage = storage
        self._max_bytes = max_bytes

    async def add(
        self, content: Source, *, filename: str | None, purpose: str, max_bytes: int | None = None
    ) -> FileRow:
        """Keep an upload; nothing is left of one that is empty, too large or cannot be recorded. `max_bytes` where it
        is not the setting for all files; the name keeps its folders where it is a trace's, which tell its domain."""
        file_id = f"file-{uuid.uuid4().hex}"
        target = self._storage.upload(file_id)
        limit = max_bytes or self._max_bytes
        written = await asyncio.to_thread(write_upload, content, target, max_bytes=limit, what="The file")
        name = safe_path(filename) if purpose == TRACE_PURPOSE else safe_filename(filename)
        try:
            if not written.num_bytes:
                raise InvalidRequest("The file is empty.", param="file")
            return await self._transactions.run(
                _remember, file_id=file_id, purpose=purpose, filename=name, written=written
            )
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    async def list(
        self, *, limit: int, after: str | None, purpose: str | None, oldest_first: bool = False
    ) -> list[FileRow]:
        """At most `limit` records behind the one with id `after`; newest first unless told otherwise."""
        return await self._transactions.run(_list, limit=limit, after=after, purpose=purpose, oldest_first=oldest_first)

    async def find(self, file_id: str) -> FileRow:
        """The record, or NotFound."""
        return await self._transactions.run(_find, file_id)

    async def content(self, file_id: str) -> tuple[FileRow, Path]:
        """The record and where the bytes are. NotFound also when they are gone."""
        row = await self.find(file_id)
        path = self._storage.upload(row.id)
        if not await asyncio.to_thread(path.is_file):
            raise NotFound(f"The bytes of {row.id} are gone: upload the file again.", code="file_not_found")
        return row, path

    async def remove(self, file_id: str) -> None:
        """Delete record and bytes. Conflict while a job that has not ended needs them."""
        await self._transactions.run(_forget, file_id)
        await asyncio.to_thread(self._storage.upload(file_id).unlink, missing_ok=True)


def _find(session: Session, file_id: str) -> FileRow:
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


def _list(session: Session, *, limit: int, after: str | None, purpose: str | None, oldest_first: bool) -> list[FileRow]:
    keys = (FileRow.created_at, FileRow.id)
    query = select(FileRow).order_by(*(key if oldest_first else key.desc() for key in keys)).limit(limit)
    if purpose is not None:
        query = query.where(FileRow.purpose == purpose)
    if after is not None:
        last = _find(session, after)
        if oldest_first:
            later, later_id = FileRow.created_at > last.created_at, FileRow.id > last.id
        else:
            later, later_id = FileRow.created_at < last.created_at, FileRow.id < last.id
        query = query.where(or_(later, and_(FileRow.created_at == last.created_at, later_id)))
    return list(session.scalars(query))


def _forget(session: Session, file_id: str) -> None:
    row = _find(session, file_id)
    unfinished = JobRow.status.not_in([status.value for status in FINAL_JOB_STATUSES])
    # Ids are unique enough to be looked for anywhere in a specification.
    needs_it = cast(JobRow.spec, Text).contains(row.id, autoescape=True)
    job_id = session.scalar(select(JobRow.id).where(unfinished, needs_it).limit(1))
    if job_id is not None:
        raise Conflict(f"{job_id} still needs this file: wait until it ends, or cancel it.", code="file_in_use")
    session.delete(row)
