"""From a job's specification to a queued row and a message: checked first, committed, then announced."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from celery import Celery
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.router_service.dataset_report import Survey, survey
from services.router_service.dry_run import Ground, dry_run, measured_rate
from services.router_service.recorded_costs import recorded_costs
from services.router_service.schemas.dry_run import DryRun
from services.router_service.schemas.registry import release_number
from services.router_service.transactions import Transactions
from services.shared import job_control, jobs
from services.shared.base_shape import BaseShape
from services.shared.config import Settings
from services.shared.database.rows import FileRow, JobRow
from services.shared.errors import InvalidDataset, NotFound, Overloaded
from services.shared.gaps import hold_open_gap
from services.shared.picture_files import num_pictures
from services.shared.queue import enqueue_job
from services.shared.registry import active_release, find_release, latest_versions
from services.shared.schemas.image_cooperation import DigitsImages, ImageCooperationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import RouterJobSpec
from services.shared.schemas.sequences import BaseModelInfo
from services.shared.schemas.trace import TraceJobSpec, TracePrompt, read_prompts_file
from services.shared.storage import Storage
from services.shared.telemetry import get_logger
from services.shared.tokenizer import Tokenizer
from services.shared.traces_registry import create_trace
from services.shared.training_text import count_examples, iterate_examples
from services.shared.vocabulary import model_name
from services.traces.traced_models import model_folder

log = get_logger(__name__)


class JobSubmission:
    """Checks what a job needs, makes its row, and tells the workers."""

    def __init__(
        self,
        transactions: Transactions,
        storage: Storage,
        queue: Celery,
        tokenizer: Tokenizer,
        settings: Settings,
        *,
        hosted_base: Callable[[], BaseModelInfo | None],
    ) -> None:
        self._transactions = transactions
        self._storage = storage
        self._queue = queue
        self._tokenizer = tokenizer
        self._base_model = settings.base_model
        self._tap_layer = settings.router.tap_layer
        self._num_processes = settings.trainer.num_processes
        self._teachers = sorted(settings.teachers)
        self._traced_models = settings.trainer.traced_models
        self._hosted_base = hosted_base
        self._max_unfinished = settings.router_service.max_unfinished_jobs

    async def submit(self, spec: JobSpecBase, *, idempotency_key: str | None) -> JobRow:
        """The queued job; the same one again for a key that was used before.

        Raises NotFound for files and experts that are not there, InvalidDataset, with the line, for bad files, and
        Overloaded for a user with too many unfinished jobs.
        """
        known = await self._transactions.run(_with_key, idempotency_key)
        if known is not None:
            return known
        self._check_teacher(spec)
        files = await self._transactions.run(_check_spec, spec)
        for field, row in files.items():
            await asyncio.to_thread(self._read_through, field, row, is_text=spec.files_are_text)
        await asyncio.to_thread(self._trace_prompts, spec)
        default_queue = self._queue.conf.task_default_queue
        hosted = self._hosted_base()
        job = await self._transactions.run(
            _create,
            spec,
            idempotency_key,
            default_queue=default_queue,
            base_fingerprint=hosted.fingerprint if hosted is not None else None,
            max_unfinished=self._max_unfinished,
        )
        await self._tell_workers(job)
        return job

    async def resume(self, job_id: str) -> JobRow:
        """The paused job, queued again. Raises NotFound, and Conflict for a job that is not paused."""
        job = await self._transactions.run(job_control.resume_job, job_id)
        await self._tell_workers(job)
        return job

    async def _tell_workers(self, job: JobRow) -> None:
        # After the commit, with the id only; a message lost here is sent again by a worker.
        if not await asyncio.to_thread(enqueue_job, self._queue, job.id, queue=job.queue):
            log.warning("queue unreachable, the workers will find the job", job=job.id)

    async def dry_run(self, spec: JobSpecBase) -> DryRun:
        """What the job would do and cost; nothing is queued. Raises what `submit` would for the spec and its files."""
        self._check_teacher(spec)
        files = await self._transactions.run(_check_spec, spec)
        surveys = {
            field: await asyncio.to_thread(self._survey, field, row)
            for field, row in files.items()
            if spec.files_are_text
        }
        queue = str(spec.queue or self._queue.conf.task_default_queue)
        measured = await self._transactions.run(
            measured_rate, spec.kind, base_model=model_name(self._base_model), queue=queue
        )
        hosted = self._hosted_base()
        recorded = await self._transactions.run(
            recorded_costs, spec, queue=queue, base_fingerprint=hosted.fingerprint if hosted is not None else None
        )
        shape = await asyncio.to_thread(BaseShape.of_model, self._base_model)
        ground = Ground(
            shape=shape,
            max_context=self._tokenizer.max_context,
            queue=queue,
            measured=measured,
            recorded=recorded,
            num_pictures=await asyncio.to_thread(self._num_pictures, spec, files),
            num_experts=await self._transactions.run(_num_experts, spec),
            tap_layer=self._tap_layer,
            num_processes=self._num_processes,
            trace_prompts=await asyncio.to_thread(self._trace_prompts, spec),
        )
        return await asyncio.to_thread(dry_run, spec, surveys, ground)

    def _check_teacher(self, spec: JobSpecBase) -> None:
        name = spec.named_teacher()
        if name is not None and name not in self._teachers:
            known = ", ".join(self._teachers) or "none"
            raise NotFound(
                f"The settings name no teacher {name!r}, they name {known}: ask one of those, or a generator of the "
                "demo (demo:chess_notation), or upload training_files.",
                param="teacher",
                code="teacher_not_found",
            )

    def _trace_prompts(self, spec: JobSpecBase) -> Sequence[TracePrompt]:
        """What a trace asks, as far as it is known before a worker looks at the release; its model is there."""
        if not isinstance(spec, TraceJobSpec):
            return ()
        if spec.model is not None:
            model_folder(self._traced_models, spec.model)
        if spec.prompts_file is not None:
            return read_prompts_file(self._storage.upload(spec.prompts_file)).prompts
        return spec.prompts or ()

    def _num_pictures(self, spec: JobSpecBase, files: Mapping[str, FileRow]) -> int | None:
        """What an image job is trained on; None where that cannot be counted here."""
        if not isinstance(spec, ImageCooperationJobSpec):
            return None
        if isinstance(spec.data, DigitsImages):
            return spec.data.num_train
        counted = [num_pictures(self._path(field, row)) for field, row in files.items() if ".train." in field]
        return sum(one for one in counted if one is not None) if counted and None not in counted else None

    def _read_through(self, field: str, row: FileRow, *, is_text: bool) -> None:
        path, template = self._path(field, row), self._tokenizer.apply_chat_template
        if is_text:
            with _named(field):
                count_examples(path, filename=row.filename, chat_template=template)

    def _survey(self, field: str, row: FileRow) -> Survey:
        path, template = self._path(field, row), self._tokenizer.apply_chat_template
        with _named(field):
            examples = iterate_examples(path, filename=row.filename, chat_template=template)
            return survey(examples, self._tokenizer)

    def _path(self, field: str, row: FileRow) -> Path:
        path = self._storage.upload(row.id)
        if not path.is_file():
            raise NotFound(
                f"The bytes of {row.id} are gone: upload the file again.", param=field, code="file_not_found"
            )
        return path


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Complaints about a file name the field that names it."""
    try:
        yield
    except InvalidDataset as error:
        raise InvalidDataset(error.message, param=field) from error


def _with_key(session: Session, idempotency_key: str | None) -> JobRow | None:
    if idempotency_key is None:
        return None
    return session.scalar(select(JobRow).where(JobRow.idempotency_key == idempotency_key))


def _num_experts(session: Session, spec: JobSpecBase) -> int:
    """Of a router to be made: those that it names, or those of the active release."""
    if not isinstance(spec, RouterJobSpec):
        return 0
    if spec.experts is not None:
        return len(spec.experts)
    active = active_release(session)
    return len(active.experts) if active is not None else 0


def _check_spec(session: Session, spec: JobSpecBase) -> Mapping[str, FileRow]:
    """The files that the job reads, by the field that names them."""
    spec.check()
    if experts := spec.named_experts():
        latest_versions(session, experts)
    if (release := spec.named_release()) is not None:
        find_release(session, release_number(release))
    if (gap := spec.named_gap()) is not None:
        hold_open_gap(session, gap)
    return {field: _find_file(session, field, file_id) for field, file_id in spec.named_files().items()}


def _find_file(session: Session, field: str, file_id: str) -> FileRow:
    # Locked against deletion until the job, which then guards it, is there.
    row = session.get(FileRow, file_id, with_for_update={"read": True})
    if row is None:
        raise NotFound(f"No file {file_id}: upload it with POST /files.", param=field, code="file_not_found")
    return row


def _create(
    session: Session,
    spec: JobSpecBase,
    idempotency_key: str | None,
    *,
    default_queue: str,
    base_fingerprint: str | None,
    max_unfinished: int,
) -> JobRow:
    # The lock makes a repeated request, come while the first is here, find the first's job.
    if idempotency_key is not None:
        _lock(session, f"key {idempotency_key}")
        known = _with_key(session, idempotency_key)
        if known is not None:
            return known
    _check_spec(session, spec)
    _check_limit(session, spec.user, max_unfinished)
    row = jobs.create_job(session, spec, default_queue=default_queue, base_fingerprint=base_fingerprint)
    row.idempotency_key = idempotency_key
    session.flush()
    if (trace := spec.named_trace()) is not None:
        create_trace(session, job_id=row.id, name=trace)
    return row


def _check_limit(session: Session, user: str | None, max_unfinished: int) -> None:
    # The lock makes requests of one user count one after the other.
    _lock(session, f"user {user or ''}")
    num_unfinished = jobs.num_unfinished(session, user=user)
    if num_unfinished >= max_unfinished:
        whose = f"{user} has" if user else "There are"
        raise Overloaded(
            f"{whose} {num_unfinished} jobs that have not ended, and {max_unfinished} are allowed: wait for one, or "
            "cancel one (GET /jobs?status=queued lists those that wait).",
            param="user",
            code="too_many_jobs",
        )


def _lock(session: Session, what: str) -> None:
    """Until the end of the transaction, against whoever locks the same."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(what, 0))))
