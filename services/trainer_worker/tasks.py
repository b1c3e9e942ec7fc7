"""The one Celery task. Its name and its message (a job's id) are in shared/queue.py.

What is imported here is loaded before the fork, so that a job starts at once; torch must not be among it.
"""

import os
import signal
import socket
import uuid
from collections.abc import Callable
from typing import Any

from services.shared.config import Settings
from services.shared.database.session import open_engine, session_factory
from services.shared.storage import Storage
from services.shared.telemetry import get_logger
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.lease_keeper import kept_leases

log = get_logger(__name__)


def run_job(*, job_id: str, settings: Settings, shutting_down: Callable[[], bool], **_future: Any) -> None:
    """Run the job whose turn it is in this worker's queue, be it `job_id` or another; without any, do nothing."""
    if settings.trainer.num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings.trainer.num_threads)  # torch reads it when it is imported
    terminated = _note_termination()
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    log.debug("woken", job=job_id)
    with kept_leases(owner, settings):
        engine = open_engine(settings.database, application_name="adaptive-moe-job")
        runner = JobRunner(
            settings=settings,
            sessions=session_factory(engine),
            storage=Storage(settings.storage.root),
            owner=owner,
            shutting_down=lambda: shutting_down() or terminated(),
        )
        try:
            # The message says that there is work; which job's turn it is, the rows say.
            runner.run_next(settings.trainer.celery_queue)
        finally:
            engine.dispose()


def _note_termination() -> Callable[[], bool]:
    """Take a SIGTERM to this child as a request to hand the job back, not as its death."""
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    return lambda: bool(seen)
