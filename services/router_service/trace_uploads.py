"""Recordings that come with an import, and go with its trace."""

from collections.abc import Callable, Sequence

from fastapi import UploadFile
from sqlalchemy.orm import Session

from services.router_service.dependencies import Resources
from services.router_service.file_store import TRACE_PURPOSE
from services.shared.database.rows import FileRow, JobRow
from services.shared.errors import AmoeError, InvalidRequest
from services.shared.schemas.trace_import import TraceImportJobSpec
from services.shared.telemetry import get_logger
from services.shared.traces_registry import delete_trace, find_trace

log = get_logger(__name__)


async def keep_files(resources: Resources, files: Sequence[UploadFile]) -> tuple[str, ...]:
    """Their ids; nothing is left of any where one is refused."""
    kept: list[str] = []
    try:
        for file in files:
            row = await resources.files.add(
                file.file,
                filename=file.filename,
                purpose=TRACE_PURPOSE,
                max_bytes=resources.settings.traces.max_upload_bytes,
            )
            kept.append(row.id)
    except BaseException as error:
        await _forget(resources, kept)
        if isinstance(error, InvalidRequest):
            raise type(error)(error.message, param="files", code=error.error_code) from error
        raise
    return tuple(kept)


async def submit_import(
    resources: Resources,
    spec_of: Callable[[tuple[str, ...]], TraceImportJobSpec],
    files: tuple[str, ...],
    *,
    idempotency_key: str | None,
) -> JobRow:
    """The queued job; nothing is left of the files where it is refused, or where the first request's job was found."""
    try:
        job = await resources.submission.submit(spec_of(files), idempotency_key=idempotency_key)
    except BaseException:
        await _forget(resources, files)
        raise
    if tuple(job.spec.get("files", ())) != files:
        await _forget(resources, files)
    return job


async def delete_with_files(resources: Resources, trace_id: str) -> None:
    """Forget a trace and what was uploaded for it. NotFound, or Conflict while its job is at work."""
    await _forget(resources, await resources.transactions.run(_delete, trace_id))


def _delete(session: Session, trace_id: str) -> list[str]:
    row = find_trace(session, trace_id)
    job = session.get(JobRow, row.job_id)
    delete_trace(session, trace_id)
    named = job.spec.get("files", []) if job is not None else []
    rows = [session.get(FileRow, file_id) for file_id in named]
    return [row.id for row in rows if row is not None and row.purpose == TRACE_PURPOSE]


async def _forget(resources: Resources, files: Sequence[str]) -> None:
    for file_id in files:
        try:
            await resources.files.remove(file_id)
        except AmoeError as error:
            # Another job needs it, or it is gone already: the trace itself goes all the same.
            log.info("a recording stays", file=file_id, reason=error.message)
