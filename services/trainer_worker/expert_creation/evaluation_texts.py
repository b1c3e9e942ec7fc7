"""The texts that evaluations have read: nothing that is learned may be among them."""

from typing import Final

from pydantic import ValidationError
from sqlalchemy import select

from services.shared.database.rows import JobRow
from services.shared.errors import InvalidRequest, JobFailed
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import JobKind
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.training_files import examples_of

_MOST_JOBS: Final = 20
_MOST_TEXTS: Final = 20_000


def evaluation_texts(context: JobContext, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Held-out texts by file, of the newest evaluation jobs; files that are gone are left out."""
    query = select(JobRow.spec).where(JobRow.kind == JobKind.EVALUATION.value)
    with context.sessions() as session:
        specs = list(session.scalars(query.order_by(JobRow.created_at.desc()).limit(_MOST_JOBS)))
    texts: dict[str, list[str]] = {}
    room = _MOST_TEXTS
    for file_id in dict.fromkeys(file_id for spec in specs for file_id in _held_out(spec)):
        if not room:
            break
        context.stop_if_asked()
        try:
            examples = examples_of(context, file_id, tokenizer)
        except (JobFailed, InvalidRequest):
            continue
        texts[file_id] = [example.text for example in examples[:room]]
        room -= len(texts[file_id])
    return texts


def _held_out(stored: dict[str, object]) -> list[str]:
    try:
        spec = EvaluationJobSpec.model_validate(stored)
    except ValidationError:  # rows outlive versions of this program
        return []
    unknown = [spec.unknown_file] if spec.unknown_file is not None else []
    return [*spec.held_out.values(), *unknown]
