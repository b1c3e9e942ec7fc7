"""Jobs of kind `trace_import`: recordings of routing that others made become a trace. One that was broken off is done
again from the beginning."""

import shutil
from pathlib import Path

from services.shared.database.rows import FileRow
from services.shared.errors import JobFailed
from services.shared.schemas.trace_import import TraceImportJobSpec
from services.traces.importers.importing import import_trace
from services.traces.importers.source_file import Reading, SourceFile
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.trace_publication import published_trace


def run_trace_import_job(context: JobContext) -> Publish:
    """Read the files; what is returned makes the trace ready."""
    spec = TraceImportJobSpec.model_validate(context.spec)
    context.enter("reading the recordings")
    reading = Reading(spec.options, context.settings.traces, stop_if_asked=context.stop_if_asked)
    scratch = _empty(context.folder.work / "unpacked")
    try:
        with context.storage.stage() as folder:
            import_trace(_files(context, spec), folder, scratch=scratch, reading=reading)
            return published_trace(context, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(context: JobContext, spec: TraceImportJobSpec) -> list[SourceFile]:
    """Under the names that they were uploaded with."""
    with context.sessions() as session:
        rows = {file_id: session.get(FileRow, file_id) for file_id in spec.files}
    return [_file(context, file_id, row) for file_id, row in rows.items()]


def _file(context: JobContext, file_id: str, row: FileRow | None) -> SourceFile:
    if row is None:
        raise JobFailed(f"The file {file_id} is no longer there: upload it again and submit a new job.", param="files")
    return SourceFile(row.filename, context.storage.upload(file_id))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
