"""Whether a claimed job can be run here and now: before it costs anything, and with a reason its owner can act on.

The router service has looked through the files when the job was submitted. Hours may lie between: files are lost or
damaged, workers start with another base model, disks fill up.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

from pydantic import TypeAdapter, ValidationError

from services.shared.base_shape import BaseShape
from services.shared.database.rows import FileRow
from services.shared.errors import InvalidDataset, JobFailed, OutOfRoom
from services.shared.modeling.base_fingerprint import base_fingerprint
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import ExpertJobSpec, JobSpec
from services.shared.tokenizer import Tokenizer, load_tokenizer
from services.shared.training_text import iterate_examples
from services.shared.vocabulary import model_name
from services.trainer_worker.checkpoints import KEPT_CHECKPOINTS
from services.trainer_worker.job_context import JobContext

_CHUNK_BYTES: Final = 1024**2
_LISTEN_EVERY: Final = 256
"""Records between two questions whether the job should stop."""
_LEAST_BYTES: Final = 32 * 1024**2
"""Of any job, for its log, its report and what it keeps between steps."""
_BYTES_PER_PARAMETER: Final = 12
"""Of a checkpoint: the weight and two moments of Adam, in float32."""
_PUBLISHED_BYTES_PER_PARAMETER: Final = 8
"""The adapter beside the checkpoints, and its copy in storage."""
_MIB: Final = 1024**2

Validate = Callable[[JobContext], None]


def validate_job(context: JobContext) -> None:
    """Return if the job can be run. Raises InvalidDataset naming the line, JobFailed or OutOfRoom, all saying what to
    do; TrainingStopped within a moment of `should_stop()`.

    Files are compared with their digests at every attempt, and read line by line at the first that comes so far.
    """
    context.enter("validating the specification")
    spec = _specification(context)
    context.enter("validating the base model")
    fingerprint = _same_base(context) if spec.uses_base_model else None
    _room_on_disk(context, spec)
    if isinstance(spec, ExpertJobSpec | ExpertCreationJobSpec):
        _machine(spec.hyperparameters)
        _ranks_that_are_served(_ranks(spec), context.settings.expert_service.max_rank)
    files = {field: _found(context, field, file_id) for field, file_id in spec.named_files().items()}
    for field, (row, path) in files.items():
        context.enter(f"validating {field}")
        if _has_changed(context, row, path):
            _refuse_changed(context, spec, field, row, path)
    _well_formed(context, spec, files, fingerprint)


def required_bytes(spec: JobSpecBase, shape: BaseShape | None) -> int:
    """Disk that a job needs until its end, rather too much than too little: `rank` on every linear layer."""
    if shape is None:
        return _LEAST_BYTES
    # One checkpoint more than is kept: the oldest goes when the newest is there.
    per_parameter = (KEPT_CHECKPOINTS + 1) * _BYTES_PER_PARAMETER + _PUBLISHED_BYTES_PER_PARAMETER
    return _LEAST_BYTES + sum(map(shape.num_lora_parameters, _ranks(spec))) * per_parameter


def _ranks(spec: JobSpecBase) -> list[int]:
    """Of the adapters that a job trains."""
    match spec:
        case ExpertJobSpec():
            return [spec.hyperparameters.rank]
        case ExpertCreationJobSpec():
            return [one.rank for one in spec.trainings]
        case _:
            return []


def _specification(context: JobContext) -> JobSpecBase:
    """Rows outlive versions of this program: what one accepted another may not know."""
    adapter: TypeAdapter[JobSpecBase] = TypeAdapter(JobSpec)
    try:
        spec = adapter.validate_python(dict(context.spec))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        raise JobFailed(
            f"This worker does not understand the job's {field or 'kind'} ({first['msg']}): it was submitted to "
            "another version. Submit it again.",
            param=field or "kind",
            code="invalid_specification",
        ) from error
    spec.check()
    return spec


def _same_base(context: JobContext) -> str:
    own = base_fingerprint(context.settings.base_model)
    if context.base_fingerprint is not None and context.base_fingerprint != own:
        raise JobFailed(
            f"The job was submitted for a base model with the fingerprint {context.base_fingerprint[:16]}, but this "
            f"worker has {model_name(context.settings.base_model)} with {own[:16]}: start both with the same base "
            "model, or submit the job again to train for this one.",
            code="base_model_differs",
        )
    return own


def _machine(hyperparameters: ExpertHyperparameters) -> None:
    """Only for jobs that ask for something rare: torch takes seconds to import."""
    if hyperparameters.quantization != "none" or hyperparameters.mixed_precision == "fp16":
        from services.trainer_worker.training.hardware import refuse_what_is_missing

        refuse_what_is_missing(hyperparameters)


def _ranks_that_are_served(ranks: list[int], limit: int) -> None:
    """What is trained at a higher rank could not be published."""
    if max(ranks) > limit:
        raise JobFailed(
            f"The job trains at rank {max(ranks)}, and adapters of rank {limit} at most are served "
            "(expert_service.max_rank): choose a lower rank.",
            param="hyperparameters.rank",
            code="rank_too_high",
        )


def _room_on_disk(context: JobContext, spec: JobSpecBase) -> None:
    shape = BaseShape.of_model(context.settings.base_model) if spec.uses_base_model else None
    needed, free = required_bytes(spec, shape), shutil.disk_usage(context.folder.work).free
    if free < needed:
        raise OutOfRoom(
            f"The job needs up to {needed // _MIB:,} MiB for checkpoints and what it publishes, and the disk of the "
            f"storage folder has {free // _MIB:,} MiB left. Make room there, or choose a lower rank, then submit the "
            "job again.",
            code="disk_full",
        )


def _found(context: JobContext, field: str, file_id: str) -> tuple[FileRow, Path]:
    with context.sessions() as session:
        row = session.get(FileRow, file_id)
    path = context.storage.upload(file_id)
    if row is None or not path.is_file():
        raise JobFailed(
            f"The file {file_id} is no longer there: upload it again and submit a new job.",
            param=field,
            code="file_missing",
        )
    return row, path


def _has_changed(context: JobContext, row: FileRow, path: Path) -> bool:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
        context.stop_if_asked()
    return digest.hexdigest() != row.sha256


def _refuse_changed(context: JobContext, spec: JobSpecBase, field: str, row: FileRow, path: Path) -> NoReturn:
    """Name the line that is damaged, if one is, else say what has happened."""
    if spec.files_are_text:
        _read_through(context, field, path, filename=row.filename, tokenizer=_tokenizer(context))
    raise JobFailed(
        f"The bytes of {row.id} ({row.filename}) are no longer those that were uploaded: upload the file again and "
        "submit a new job.",
        param=field,
        code="file_changed",
    )


def _tokenizer(context: JobContext) -> Tokenizer:
    return load_tokenizer(context.settings.base_model, chat_template=context.settings.chat_template)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _well_formed(
    context: JobContext, spec: JobSpecBase, files: dict[str, tuple[FileRow, Path]], fingerprint: str | None
) -> None:
    """Read text line by line as the training will, unless an earlier attempt has come so far with the same bytes."""
    if not spec.files_are_text or not files:
        return
    seen = "\n".join([str(fingerprint), *(row.sha256 for row, _ in files.values())])
    marker = context.folder.work / "validated"
    if marker.exists() and marker.read_text() == seen:
        return
    tokenizer = _tokenizer(context)
    for field, (row, path) in files.items():
        context.enter(f"reading {field}")
        _read_through(context, field, path, filename=row.filename, tokenizer=tokenizer)
    marker.write_text(seen)


def _read_through(context: JobContext, field: str, path: Path, *, filename: str, tokenizer: Tokenizer) -> None:
    try:
        for number, _ in enumerate(
            iterate_examples(path, filename=filename, chat_template=tokenizer.apply_chat_template)
        ):
            if number % _LISTEN_EVERY == 0:
                context.stop_if_asked()
    except InvalidDataset as error:
        raise InvalidDataset(error.message, param=field) from error
