"""The way to the workers: Celery over Valkey, JSON only, and in a message nothing but a job's id (DESIGN D6)."""

from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from services.shared.config import Settings

RUN_JOB: Final = "services.trainer_worker.tasks.run_job"
_CONNECT_TIMEOUT_S: Final = 2.0


def celery_client(settings: Settings) -> Celery:
    """A client that sends to the configured queue. Connects on first use, so the broker may be down meanwhile."""
    client = Celery("adaptive-moe", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    client.conf.update(
        task_default_queue=settings.trainer.celery_queue,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        enable_utc=True,
        broker_connection_timeout=_CONNECT_TIMEOUT_S,
        broker_transport_options={
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
            "socket_timeout": 10.0,
            "socket_keepalive": True,
        },
    )
    return client


def enqueue_job(client: Celery, job_id: str, *, queue: str | None = None) -> bool:
    """Tell the workers of `queue` (default: the client's) of a job; call it after the commit.

    Whoever gets the message takes the job whose turn it is, which may be another. False when the broker cannot be
    reached: a worker will find the queued row by itself as soon as the broker is back.
    """
    retry_policy = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.1}
    try:
        client.send_task(
            RUN_JOB,
            kwargs={"job_id": job_id},
            queue=queue or client.conf.task_default_queue,
            ignore_result=True,
            retry_policy=retry_policy,
        )
    except OperationalError:
        return False
    return True


def num_waiting(client: Celery, *, queue: str | None = None) -> int:
    """Messages in `queue` (default: the client's) that no worker has taken yet.

    Raises kombu's OperationalError when the broker is down.
    """
    name = queue or client.conf.task_default_queue
    with client.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=_CONNECT_TIMEOUT_S)
        with connection.channel() as channel:
            return int(channel.queue_declare(queue=name, passive=False, durable=True).message_count)
