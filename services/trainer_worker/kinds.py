"""Which code runs which kind of job.

To add a kind: name it in vocabulary.JobKind, give it a spec in schemas/jobs.py, write a function like
expert_job.run_expert_job, and add a line here. Imports are inside, so that nothing loads torch before its time.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from services.shared.vocabulary import JobKind
from services.trainer_worker.job_context import JobContext

Publish = Callable[[Session], dict[str, Any]]
"""Makes a job's outcome visible and returns its result. Called in the very transaction that ends the job, so that both
happen or neither; called again, in a new one, when an activation came in between. Database work only."""

Handler = Callable[[JobContext], Publish]
"""Does a job's long work. It may run again after an interruption, with what it left in `context.folder`."""


def handler_of(kind: JobKind) -> Handler:
    """The function that runs jobs of `kind`."""
    match kind:
        case JobKind.EXPERT:
            from services.trainer_worker.expert_job import run_expert_job

            return run_expert_job
        case JobKind.ROUTER:
            from services.trainer_worker.router_job import run_router_job

            return run_router_job
        case JobKind.IMAGE_COOPERATION:
            from services.trainer_worker.image_cooperation.job import run_image_job

            return run_image_job
        case JobKind.EVALUATION:
            from services.trainer_worker.evaluation_job import run_evaluation_job

            return run_evaluation_job
        case JobKind.COOPERATION_GRAPH:
            from services.trainer_worker.cooperation_graph_job import run_cooperation_graph_job

            return run_cooperation_graph_job
        case JobKind.GAP_ANALYSIS:
            from services.trainer_worker.gap_analysis.job import run_gap_analysis_job

            return run_gap_analysis_job
