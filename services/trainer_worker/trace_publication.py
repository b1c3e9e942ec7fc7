"""From a folder to a trace that can be read: analysed, published, and ready in the transaction that ends its job.

Jobs that make traces name no digests in their results: a trace that is deleted leaves nothing that needs its artifacts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from services.shared.job_events import EventLevel
from services.shared.traces_registry import finish_trace
from services.traces.analysis import analyse, write_analysis
from services.traces.description import Finding, Severity, TraceDescription
from services.traces.report.writing import write_report
from services.traces.table import Trace
from services.trainer_worker.job_context import JobContext

_LEVELS: dict[Severity, EventLevel] = {Severity.INFO: "info", Severity.WARNING: "warn", Severity.DEGENERATE: "warn"}


def published_trace(context: JobContext, folder: Path) -> Callable[[Session], dict[str, Any]]:
    """Analyse the trace in `folder` and publish both; what is returned makes it ready, and is told of it."""
    trace = Trace(folder)
    for finding in trace.description.findings:
        _note(context, finding)
    context.enter("analysing")
    with context.storage.stage() as staged:
        analysis = analyse(trace)
        write_analysis(analysis, staged)
        write_report(analysis, staged, title=_title(context, trace.description))
        context.enter("publishing the trace")
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
