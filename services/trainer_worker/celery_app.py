"""The Celery side of a worker: one job at a time, each in a child of its own that is forked before torch is imported.

Messages are acknowledged when they are taken, because the row's lease, not the broker, brings a lost job back.
"""

import multiprocessing
from collections.abc import Callable
from typing import Any, Final

from celery import Celery
from celery.signals import worker_shutting_down

from services.shared.config import Settings
from services.shared.queue import RUN_JOB, celery_client
from services.trainer_worker.tasks import run_job

WORKER_ARGUMENTS: Final = (
    *("--quiet", "worker", "--pool=prefork", "--concurrency=1", "--max-tasks-per-child=1"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO"),
)


def worker_app(settings: Settings) -> Celery:
    """The Celery app that a worker process runs: the client's, with the one task on it."""
    app = celery_client(settings)
    app.conf.update(
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_acks_late=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_proc_alive_timeout=60.0,
    )
    shutting_down = _shutdown_flag()

    @app.task(name=RUN_JOB, ignore_result=True)  # type: ignore[untyped-decorator]
    def run(*, job_id: str, **_future: Any) -> None:
        run_job(job_id=job_id, settings=settings, shutting_down=shutting_down)

    return app


def _shutdown_flag() -> Callable[[], bool]:
    """True, in the children too, once this process was told to end: a byte in memory that forks share."""
    flag = multiprocessing.RawValue("b", 0)

    def set_flag(**_: Any) -> None:
        flag.value = 1

    worker_shutting_down.connect(set_flag, weak=False)
    return lambda: bool(flag.value)
