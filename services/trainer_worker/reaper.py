"""Brings back jobs that a lost worker or a lost message would leave lying, has garbage removed and gaps looked for.

Every worker has one, as a small process of its own; any number of them may run at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

from celery import Celery
from kombu.exceptions import OperationalError as BrokerDown
from sqlalchemy.exc import OperationalError as DatabaseDown
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.session import open_engine, session_factory
from services.shared.jobs import waiting_jobs
from services.shared.lost_jobs import Reaped, reap_jobs
from services.shared.queue import celery_client, enqueue_job, num_waiting
from services.shared.telemetry import configure_logging, get_logger
from services.trainer_worker.garbage_collection import GarbageCollection
from services.trainer_worker.scheduled_analyses import ScheduledAnalyses

log = get_logger(__name__)


def reap_once(sessions: sessionmaker[Session], client: Celery, settings: Settings) -> Reaped:
    """One round: take back jobs of lost workers and send for them; send again for queued jobs whose message is gone."""
    with sessions.begin() as session:
        reaped = reap_jobs(session, max_attempts=settings.trainer.max_attempts)
    for job_id in (*reaped.requeued, *reaped.paused, *reaped.ended):
        log.warning("a job's worker was lost", job=job_id, requeued=job_id in reaped.requeued)
    with sessions.begin() as session:
        waiting = waiting_jobs(session, older_than_s=settings.trainer.reap_every_s)
    for queue in sorted({job.queue for job in waiting}):
        ids = [job.id for job in waiting if job.queue == queue]
        # As many messages as waiting jobs: all is well. Fewer: some are lost, and a message too many does no harm.
        if num_waiting(client, queue=queue) < len(ids):
            for job_id in ids:
                enqueue_job(client, job_id, queue=queue)
    return reaped


def run_reaper(settings: Settings, *, should_stop: Callable[[float], bool]) -> None:
    """Reap every `reap_every_s` until `should_stop(seconds)` says so, however often database or broker are away."""
    client = celery_client(settings)
    engine = open_engine(settings.database, application_name="adaptive-moe-reaper")
    sessions = session_factory(engine)
    garbage = GarbageCollection(settings.storage, sessions)
    analyses = ScheduledAnalyses(settings, sessions, client)
    was_down = False
    while not should_stop(settings.trainer.reap_every_s):
        try:
            reap_once(sessions, client, settings)
            garbage.run_if_due()
            analyses.run_if_due()
        except (DatabaseDown, BrokerDown) as error:
            if not was_down:
                log.warning("jobs cannot be looked after for now", reason=str(error).splitlines()[0][:200])
            was_down = True
        else:
            was_down = False
    engine.dispose()


def main(worker: int) -> None:
    """Reap until SIGTERM, or until the worker of that process id, which started this process, is gone."""
    settings = Settings()
    configure_logging(settings.telemetry, service="reaper")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    run_reaper(settings, should_stop=lambda seconds: ended.wait(seconds) or os.getppid() != worker)


if __name__ == "__main__":
    main(int(sys.argv[1]))
