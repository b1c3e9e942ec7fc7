"""From a folder to a trace that can be read: analysed, published, and ready in the transaction that ends its job.

Jobs that make traces name no digests in their results: a trace that is deleted leaves nothing that needs its artifacts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from services.shared.job_events import EventLevel
from services.shared.traces_registry import finish_trace
from services.traces.analysis import analyse, write_analysis
from services.traces.choices import LayerChoices
from services.traces.description import Finding, Severity, TraceDescription
from services.traces.report.writing import write_report
from services.traces.table import Trace
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.progress import StepClock, TrainingProgress

_LEVELS: dict[Severity, EventLevel] = {Severity.INFO: "info", Severity.WARNING: "warn", Severity.DEGENERATE: "warn"}


def published_trace(context: JobContext, folder: Path) -> Callable[[Session], dict[str, Any]]:
    """Analyse the trace in `folder` and publish both; what is returned makes it ready, and is told of it.

    Raises TrainingStopped within a layer of the request.
    """
    trace = Trace(folder)
    for finding in trace.description.findings:
        _note(context, finding)
    with context.storage.stage() as staged:
        analysis = analyse(_Watched(trace, context))
        write_analysis(analysis, staged)
        write_report(analysis, staged, title=_title(context, trace.description))
        context.stop_if_asked()
        num_layers = len(trace.layers)
        context.report(TrainingProgress("publishing the trace", step=num_layers, total_steps=num_layers))
        analysis_digest = context.storage.publish(staged)
    digest = context.storage.publish(folder)

    def publish(session: Session) -> dict[str, Any]:
        row = finish_trace(
            session,
            job_id=context.job_id,
            digest=digest,
            analysis_digest=analysis_digest,
            description=trace.description.model_dump(mode="json"),
        )
        return {"trace": row.id} | _told(trace.description)

    return publish


def _title(context: JobContext, description: TraceDescription) -> str:
    return f"Routing in {context.spec.get('name') or description.model or 'a model'}"


class _Watched:
    """A trace whose layers are counted as they are asked for, and that is left where the job should stop."""

    def __init__(self, trace: Trace, context: JobContext) -> None:
        self._trace = trace
        self._context = context
        self._clock = StepClock(0)
        self._step = 0

    @property
    def description(self) -> TraceDescription:
        return self._trace.description

    @property
    def layers(self) -> Sequence[int]:
        return self._trace.layers

    def layer(self, number: int, /) -> LayerChoices:
        self._context.stop_if_asked()
        total_steps = len(self._trace.layers)
        left = self._clock.seconds_left(self._step, total_steps)
        self._context.report(TrainingProgress("analysing", step=self._step, total_steps=total_steps, seconds_left=left))
        self._step += 1
        return self._trace.layer(number)


def _note(context: JobContext, finding: Finding) -> None:
    context.note(finding.message, level=_LEVELS[finding.severity], data=finding.model_dump(mode="json"))


def _told(description: TraceDescription) -> dict[str, Any]:
    return {
        "source": description.source.value,
        "domains": list(description.domains),
        "num_sequences": description.num_sequences,
        "num_tokens": description.num_tokens,
        "num_layers": len(description.layers),
        "degenerate_layers": [each.layer for each in description.layers if description.is_degenerate(each.layer)],
        "findings": [finding.code for finding in description.findings],
    }
