"""The texts that a job trains on or makes evidence of, as examples."""

from pathlib import Path

from services.shared.database.rows import FileRow
from services.shared.errors import JobFailed
from services.shared.publishing import EXEMPLARS_FILE
from services.shared.tokenizer import Tokenizer
from services.shared.training_text import Example, read_examples
from services.trainer_worker.job_context import JobContext


def examples_of(context: JobContext, file_id: str, tokenizer: Tokenizer) -> list[Example]:
    """All examples of an uploaded file. Raises InvalidDataset naming the line, or JobFailed when the file is gone."""
    with context.sessions() as session:
        row = session.get(FileRow, file_id)
    path = context.storage.upload(file_id)
    if row is None or not path.is_file():
        raise JobFailed(
            f"The file {file_id} is no longer there: upload it again and submit a new job.", code="file_missing"
        )
    return read_examples(path, filename=row.filename, chat_template=tokenizer.apply_chat_template)


def evidence_texts(
    context: JobContext, folder: Path, file_id: str | None, tokenizer: Tokenizer
) -> list[Example] | None:
    """What an expert's evidence is made of: an uploaded file, or else the exemplars in its folder; None without."""
    if file_id is not None:
        return examples_of(context, file_id, tokenizer)
    exemplars = folder / EXEMPLARS_FILE
    return read_examples(exemplars, filename=EXEMPLARS_FILE) if exemplars.exists() else None
