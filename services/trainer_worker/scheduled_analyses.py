"""Gap analyses that nobody asked for, submitted every now and then by the process that also looks after lost jobs."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from celery import Celery
from sqlalchemy import ColumnElement, exists, func, select, true
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.clock import NOW
from services.shared.database.rows import JobRow, RequestRow
from services.shared.jobs import create_job
from services.shared.queue import enqueue_job
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.shared.telemetry import get_logger
from services.shared.vocabulary import FINAL_JOB_STATUSES, JobKind, JobStatus

log = get_logger(__name__)

_LOCK: Final = 4_142_020
"""Any number of our own: of several workers, one submits."""
_LOOKS_PER_PERIOD: Final = 10


class ScheduledAnalyses:
    """Submits a job when none was for `gaps.analyse_every_s`, by anyone, none waits or runs, and requests have been
    flagged since."""

    def __init__(
        self,
        settings: Settings,
        sessions: sessionmaker[Session],
        queue: Celery,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_s = settings.gaps.analyse_every_s
        self._default_queue = settings.trainer.celery_queue
        self._sessions = sessions
        self._queue = queue
        self._clock = clock
        self._look_at = clock()

    def run_if_due(self) -> str | None:
        """The id of the job that was submitted."""
        if not self._every_s or self._clock() < self._look_at:
            return None
        self._look_at = self._clock() + self._every_s / _LOOKS_PER_PERIOD
        with self._sessions.begin() as session:
            if not session.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))) or not self._is_due(session):
                return None
            row = create_job(session, GapAnalysisJobSpec(), default_queue=self._default_queue)
            job_id, queue = row.id, row.queue
        enqueue_job(self._queue, job_id, queue=queue)
        log.info("gap analysis submitted", job=job_id)
        return job_id

    def _is_due(self, session: Session) -> bool:
        last = select(func.max(JobRow.created_at)).where(JobRow.kind == JobKind.GAP_ANALYSIS.value).scalar_subquery()
        # Behind a training that takes days they would only pile up. A paused one may wait for ever.
        is_coming = exists().where(
            JobRow.kind == JobKind.GAP_ANALYSIS.value,
            JobRow.status.not_in({*FINAL_JOB_STATUSES, JobStatus.PAUSED.value}),
        )
        rested = func.coalesce(last < NOW - timedelta(seconds=self._every_s), true())
        is_new: ColumnElement[bool] = func.coalesce(RequestRow.at > last, true())
        flagged = exists().where(RequestRow.flagged == true(), is_new)
        return bool(session.scalar(select(rested & ~is_coming & flagged)))
