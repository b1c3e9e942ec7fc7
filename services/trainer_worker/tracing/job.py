"""Jobs of kind `trace`: prompts of several domains are answered, and which experts each token went through becomes a
trace with its analysis."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from sqlalchemy.orm import Session

from services.shared.jobs import find_job
from services.shared.schemas.trace import PromptsFile, TraceJobSpec
from services.traces.directory_layout import DirectoryLayout
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish
from services.trainer_worker.trace_publication import published_trace
from services.trainer_worker.tracing.batches import Batches
from services.trainer_worker.tracing.prompts import prompts_of, tokenized
from services.trainer_worker.tracing.subject import Traced, release_of, traced
from services.trainer_worker.tracing.written_trace import write_trace

_TRACE: Final = "trace"
_DIRECTORY: Final = "directory"


def run_trace_job(context: JobContext) -> Publish:
    """Answer what is not answered yet and analyse what was recorded; what is returned makes the trace ready."""
    spec = TraceJobSpec.model_validate(context.spec)
    context.enter("reading")
    release = release_of(context, spec)
    file = prompts_of(context, spec, release)
    context.enter("loading the model")
    with context.storage.stage() as staged:
        with traced(context.settings, spec, release) as subject:
            prompts = tokenized(file, spec, subject)
            batches = Batches(prompts, context.run_control("batches"), batch_size=spec.batch_size, seed=spec.seed)
            batches.answer(subject, temperature=spec.temperature)
            context.enter("writing")
            _write(context, spec, file, subject, batches, staged)
        make_ready = published_trace(context, staged / _TRACE)
        artifacts = {}
        if spec.layout == "directory":
            artifacts["directory"] = context.storage.publish(staged / _DIRECTORY)

    def publish(session: Session) -> dict[str, Any]:
        return make_ready(session) | {"model": subject.name, "artifacts": artifacts}

    return publish


def _write(
    context: JobContext, spec: TraceJobSpec, file: PromptsFile, subject: Traced, batches: Batches, folder: Path
) -> None:
    """The trace, and in a folder of its own the directory if that is wanted."""
    for name in (_TRACE, _DIRECTORY):
        (folder / name).mkdir()
    about = {"prompts": file.experiment_name, "temperature": spec.temperature, "seed": spec.seed}
    with ExitStack() as stack:
        layout = stack.enter_context(_directory(context, file, folder)) if spec.layout == "directory" else None
        write_trace(folder / _TRACE, batches.sequences(), subject, layout=layout, about=about)


def _directory(context: JobContext, file: PromptsFile, folder: Path) -> DirectoryLayout:
    with context.sessions() as session:
        day = find_job(session, context.job_id).created_at.date()
    prompts = file.model_dump_json(indent=1) + "\n"
    return DirectoryLayout(folder / _DIRECTORY, experiment=file.experiment_name, on=day, prompts=prompts)
