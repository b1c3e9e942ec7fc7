"""The uploaded files that a job trains on, as examples."""

from services.shared.database.rows import FileRow
from services.shared.errors import JobFailed
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
