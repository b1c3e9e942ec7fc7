"""Lost messages and lost workers."""

from collections.abc import Callable

import pytest
from kombu.exceptions import OperationalError
from pydantic import SecretStr
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.ports import free_port
from services.shared.config import Settings
from services.shared.job_lease import claim_job
from services.shared.jobs import create_job, find_job
from services.shared.queue import celery_client, enqueue_job, num_waiting
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.vocabulary import JobStatus
from services.trainer_worker.reaper import reap_once

pytestmark = pytest.mark.integration

Submit = Callable[[], str]


@pytest.fixture
def submit_silently(sessions: sessionmaker[Session], settings: Settings) -> Submit:
    """A queued job whose message was never sent."""

    def submit() -> str:
        spec = ExpertJobSpec(name="math", training_file="file-" + "0" * 32)
        with sessions.begin() as session:
            return create_job(session, spec, default_queue=settings.trainer.celery_queue).id

    return submit


@pytest.fixture
def prompt(settings: Settings) -> Settings:
    """Settings by which a job has waited for long as soon as it is queued."""
    return settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"reap_every_s": 0.0})})


def test_sends_for_a_queued_job_whose_message_was_lost(
    prompt: Settings, sessions: sessionmaker[Session], submit_silently: Submit
) -> None:
    client = celery_client(prompt)
    submit_silently()

    reap_once(sessions, client, prompt)
    reap_once(sessions, client, prompt)

    assert num_waiting(client) == 1


def test_sends_for_jobs_of_other_workers_queues_too(prompt: Settings, sessions: sessionmaker[Session]) -> None:
    client, elsewhere = celery_client(prompt), f"{prompt.trainer.celery_queue}-gpu"
    with sessions.begin() as session:
        spec = ExpertJobSpec(name="math", training_file="file-" + "0" * 32)
        create_job(session, spec, default_queue=elsewhere)

    reap_once(sessions, client, prompt)

    assert (num_waiting(client), num_waiting(client, queue=elsewhere)) == (0, 1)


def test_sends_for_a_job_whose_worker_was_lost(
    prompt: Settings, sessions: sessionmaker[Session], submit_silently: Submit
) -> None:
    client = celery_client(prompt)
    job_id = submit_silently()
    with sessions.begin() as session:
        claim_job(session, job_id, owner="lost", lease_s=-1, max_attempts=3)

    reaped = reap_once(sessions, client, prompt)

    assert reaped.requeued == (job_id,)
    assert num_waiting(client) == 1
    with sessions() as session:
        assert find_job(session, job_id).status == JobStatus.QUEUED


def test_a_broker_that_is_down_fails_no_submission_and_is_caught_up_with_later(
    prompt: Settings, sessions: sessionmaker[Session], submit_silently: Submit
) -> None:
    nobody = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    without_broker = prompt.model_copy(update={"redis_url": nobody})
    job_id = submit_silently()

    assert not enqueue_job(celery_client(without_broker), job_id)
    with pytest.raises(OperationalError):
        reap_once(sessions, celery_client(without_broker), without_broker)
    reap_once(sessions, celery_client(prompt), prompt)

    assert num_waiting(celery_client(prompt)) == 1
