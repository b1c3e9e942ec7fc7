"""From a job's specification to a queued row and a message: checked first, committed, then announced."""

import asyncio
from collections.abc import Mapping

from celery import Celery
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.router_service.transactions import Transactions
from services.shared import jobs
from services.shared.database.rows import FileRow, JobRow
from services.shared.errors import InvalidDataset, InvalidRequest, NotFound
from services.shared.queue import enqueue_job
from services.shared.registry import latest_versions
from services.shared.schemas.jobs import ExpertJobSpec, RouterJobSpec
from services.shared.storage import Storage
from services.shared.telemetry import get_logger
from services.shared.training_text import count_examples
from services.shared.vocabulary import BASE

log = get_logger(__name__)

Spec = ExpertJobSpec | RouterJobSpec


class JobSubmission:
    """Checks what a job needs, makes its row, and tells the workers."""

    def __init__(self, transactions: Transactions, storage: Storage, queue: Celery) -> None:
        self._transactions = transactions
        self._storage = storage
        self._queue = queue

    async def submit(self, spec: Spec, *, idempotency_key: str | None) -> JobRow:
        """The queued job; the same one again for a key that was used before.

        Raises NotFound for files and experts that are not there and InvalidDataset, with the line, for bad files.
        """
        known = await self._transactions.run(_with_key, idempotency_key)
        if known is not None:
            return known
        files = await self._transactions.run(_check_spec, spec)
        for field, row in files.items():
            await asyncio.to_thread(self._read_through, field, row)
        job = await self._transactions.run(_create, spec, idempotency_key)
        # After the commit, with the id only; a message lost here is sent again by a worker.
        if not await asyncio.to_thread(enqueue_job, self._queue, job.id):
            log.warning("queue unreachable, the workers will find the job", job=job.id)
        return job

    def _read_through(self, field: str, row: FileRow) -> None:
        path = self._storage.upload(row.id)
        if not path.is_file():
            raise NotFound(
                f"The bytes of {row.id} are gone: upload the file again.", param=field, code="file_not_found"
            )
        try:
            count_examples(path, filename=row.filename)
        except InvalidDataset as error:
            raise InvalidDataset(error.message, param=field) from error


def _with_key(session: Session, idempotency_key: str | None) -> JobRow | None:
    if idempotency_key is None:
        return None
    return session.scalar(select(JobRow).where(JobRow.idempotency_key == idempotency_key))


def _check_spec(session: Session, spec: Spec) -> Mapping[str, FileRow]:
    """The files that the job reads, by the field that names them."""
    if isinstance(spec, ExpertJobSpec):
        _check_expert_job(spec)
    elif spec.experts is not None:
        latest_versions(session, spec.experts)
    return {field: _find_file(session, field, file_id) for field, file_id in _named_files(spec).items()}


def _check_expert_job(spec: ExpertJobSpec) -> None:
    if spec.name == BASE:
        raise InvalidRequest(f"{BASE!r} is the base model's own name: choose another.", param="name")
    if spec.activate and not spec.add_to_release:
        raise InvalidRequest("activate needs add_to_release: a release is what is activated.", param="activate")


def _named_files(spec: Spec) -> dict[str, str]:
    if isinstance(spec, ExpertJobSpec):
        named = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    else:
        named = {f"training_files.{name}": file_id for name, file_id in spec.training_files.items()}
        named["generic_file"] = spec.generic_file
    return {field: file_id for field, file_id in named.items() if file_id is not None}


def _find_file(session: Session, field: str, file_id: str) -> FileRow:
    # Locked against deletion until the job, which then guards it, is there.
    row = session.get(FileRow, file_id, with_for_update={"read": True})
    if row is None:
        raise NotFound(f"No file {file_id}: upload it with POST /files.", param=field, code="file_not_found")
    return row


def _create(session: Session, spec: Spec, idempotency_key: str | None) -> JobRow:
    # The lock makes a repeated request, come while the first is here, find the first's job.
    if idempotency_key is not None:
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(idempotency_key, 0))))
        known = _with_key(session, idempotency_key)
        if known is not None:
            return known
    _check_spec(session, spec)
    row = jobs.create_job(session, spec)
    row.idempotency_key = idempotency_key
    session.flush()
    return row
