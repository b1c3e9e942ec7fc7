"""A job that waits for somebody to look at its data: paused by itself, resumed by them."""

from typing import Any, Final

from sqlalchemy import select

from services.shared.database.rows import JobEventRow
from services.shared.job_control import request_pause
from services.shared.job_events import add_event
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.progress import TrainingStopped

_ASKED: Final = {"approval": "asked"}


def await_approval(context: JobContext, report: dict[str, Any]) -> dict[str, Any]:
    """Pause the job until it is resumed, which is the approval; raises TrainingStopped the first time.

    That it was asked for, and that the job is to be paused, is committed together: whatever happens to the worker, the
    job runs again only once somebody has resumed it.
    """
    job_id = context.job_id
    with context.sessions.begin() as session:
        asked = select(JobEventRow.id).where(JobEventRow.job_id == job_id, JobEventRow.data.contains(_ASKED))
        if session.scalar(asked.limit(1)) is not None:
            return {"approved": True}
        add_event(
            session,
            job_id,
            f"{report['num_kept']} examples wait for your approval. Look at them: GET /jobs/{job_id}/artifacts/data/"
            f"train.jsonl, and report.json beside it. Go on: POST /jobs/{job_id}/resume. Refuse: POST /jobs/{job_id}/"
            "cancel.",
            data=_ASKED,
        )
        request_pause(session, job_id)
    raise TrainingStopped("the job waits for approval")
