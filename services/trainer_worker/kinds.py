"""Which code runs which kind of job.

To add a kind: name it in vocabulary.JobKind, give it a spec in schemas/jobs.py, write a function like
expert_job.run_expert_job, and add a line here. Handlers are named and imported when they are needed, so that nothing
loads torch before its time.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from sqlalchemy.orm import Session

from services.shared.vocabulary import JobKind
from services.trainer_worker.job_context import JobContext

Publish = Callable[[Session], dict[str, Any]]
"""Makes a job's outcome visible and returns its result. Called in the very transaction that ends the job, so that both
happen or neither; called again, in a new one, when an activation came in between. Database work only."""

Handler = Callable[[JobContext], Publish]
"""Does a job's long work. It may run again after an interruption, with what it left in `context.folder`."""

_HANDLERS: Final[dict[JobKind, tuple[str, str]]] = {
    JobKind.EXPERT: ("services.trainer_worker.expert_job", "run_expert_job"),
    JobKind.EXPERT_CREATION: ("services.trainer_worker.expert_creation.job", "run_expert_creation_job"),
    JobKind.ROUTER: ("services.trainer_worker.router_job", "run_router_job"),
    JobKind.IMAGE_COOPERATION: ("services.trainer_worker.image_cooperation.job", "run_image_job"),
    JobKind.EVALUATION: ("services.trainer_worker.evaluation_job", "run_evaluation_job"),
    JobKind.COOPERATION_GRAPH: ("services.trainer_worker.cooperation_graph_job", "run_cooperation_graph_job"),
    JobKind.GAP_ANALYSIS: ("services.trainer_worker.gap_analysis.job", "run_gap_analysis_job"),
    JobKind.CALIBRATION: ("services.trainer_worker.calibration_job", "run_calibration_job"),
    JobKind.TRACE_IMPORT: ("services.trainer_worker.trace_import_job", "run_trace_import_job"),
    JobKind.TRACE: ("services.trainer_worker.tracing.job", "run_trace_job"),
}


def handler_of(kind: JobKind) -> Handler:
    """The function that runs jobs of `kind`; its module is imported now."""
    module, function = _HANDLERS[kind]
    handler: Handler = getattr(import_module(module), function)
    return handler
