"""Real worker processes: a job's whole trip, and what becomes of it when they are stopped, killed or told to cancel."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.job_control import request_cancel, request_pause, resume_job
from services.shared.job_events import list_events
from services.shared.job_metrics import read_metrics
from services.shared.queue import celery_client, enqueue_job
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.storage import Storage
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import read_examples
from services.shared.vocabulary import JobStatus
from services.trainer_worker.datasets import split_examples

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

STEADY = ExpertHyperparameters(
    rank=4, max_steps=160, batch_size=1, max_length=32, eval_steps=40, dropout=0.1, early_stopping_patience=0
)
MISSING = ExpertJobSpec(name="math", training_file="file-" + "0" * 32)
"""Ends at once, because its file does not exist."""

Submit = Callable[[ExpertJobSpec], str]
Wait = Callable[..., JobRow]
Start = Callable[[], "subprocess.Popen[bytes]"]


def is_training(row: JobRow) -> bool:
    return row.status == JobStatus.RUNNING and row.phase in {"training", "evaluating"} and row.step > 0


def test_a_job_goes_its_whole_way_once_however_many_messages_there_are(
    submit: Submit,
    wait_for: Wait,
    start_worker: Start,
    word_problems: str,
    settings: Settings,
    sessions: sessionmaker[Session],
) -> None:
    quick = STEADY.model_copy(update={"max_steps": 10, "eval_steps": 5})
    job_id = submit(ExpertJobSpec(name="math", training_file=word_problems, hyperparameters=quick))
    for _ in range(3):
        enqueue_job(celery_client(settings), job_id)

    start_worker()
    row = wait_for(job_id)

    assert row.status == JobStatus.SUCCEEDED, row.error
    assert row.attempt == 1
    with sessions() as session:
        events = list_events(session, job_id)
        points = read_metrics(session, job_id, max_points=100)
    assert [point.step for point in points] == list(range(1, 11))
    assert {"loss", "eval_loss", "learning_rate", "seconds", "tokens_per_s"} <= set(points[-1].figures)
    assert row.result["metrics"]["tokens_per_s"] > 0
    assert [event.data["status"] for event in events if event.type == "status"] == [
        "queued",
        "validating",
        "running",
        "succeeded",
    ]
    metrics = [event.data for event in events if event.type == "metrics"]
    assert metrics[-1]["step"] == metrics[-1]["total_steps"] == 10
    assert any("eval_loss" in data for data in metrics)
    assert row.result["metrics"]["eval_loss"] < row.result["metrics"]["base_eval_loss"]


def test_a_job_survives_a_pause_a_shutdown_and_a_kill_with_the_weights_of_an_uninterrupted_run(
    submit: Submit,
    wait_for: Wait,
    start_worker: Start,
    word_problems: str,
    settings: Settings,
    sessions: sessionmaker[Session],
    tmp_path: Path,
) -> None:
    job_id = submit(ExpertJobSpec(name="math", training_file=word_problems, hyperparameters=STEADY))

    leaving = start_worker()
    wait_for(job_id, lambda row: is_training(row) and row.step >= 13)
    with sessions.begin() as session:
        request_pause(session, job_id)
    paused = wait_for(job_id, lambda row: row.status == JobStatus.PAUSED, 60.0)
    assert keeps_its_last_step(paused, settings)
    assert wait_for(submit(MISSING)).error["code"] == "file_missing", "the worker is free meanwhile"
    with sessions.begin() as session:
        resume_job(session, job_id)
    enqueue_job(celery_client(settings), job_id)

    wait_for(job_id, lambda row: is_training(row) and row.step > paused.step + 5)
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(60) == 0
    handed_back = wait_for(job_id, lambda row: row.status == JobStatus.QUEUED, 1.0)
    assert keeps_its_last_step(handed_back, settings)

    dying = start_worker()
    wait_for(job_id, lambda row: is_training(row) and row.step > handed_back.step + 15)
    killed_at = time.monotonic()
    os.killpg(dying.pid, signal.SIGKILL)
    dying.wait()
    start_worker()
    wait_for(job_id, lambda row: row.attempt == 2)
    print(f"running again {time.monotonic() - killed_at:.1f} s after the kill")  # noqa: T201
    row = wait_for(job_id)

    assert row.status == JobStatus.SUCCEEDED, row.error
    artifact = Storage(settings.storage.root).artifact(row.result["digest"])
    resumed = (artifact / "adapter_model.safetensors").read_bytes()
    assert resumed == uninterrupted(word_problems, settings, tmp_path)


def keeps_its_last_step(row: JobRow, settings: Settings) -> bool:
    """True when no step will be done twice, and the stop cost no attempt."""
    checkpoints = Storage(settings.storage.root).root / "jobs" / row.id / "work" / "checkpoints"
    return row.attempt == 0 and (checkpoints / f"checkpoint-{row.step}" / "complete").exists()


def uninterrupted(training_file: str, settings: Settings, tmp_path: Path) -> bytes:
    """The weights of the same training in one go."""
    from services.trainer_worker.training.expert import train_expert

    path = Storage(settings.storage.root).upload(training_file)
    chat_template = load_tokenizer(settings.base_model).apply_chat_template
    examples = read_examples(path, filename="problems.jsonl", chat_template=chat_template)
    train, validation = split_examples(examples, fraction=STEADY.validation_fraction, seed=STEADY.seed)
    training = train_expert(
        base_model=settings.base_model,
        train=train,
        validation=validation,
        hyperparameters=STEADY,
        output_dir=tmp_path / "uninterrupted",
        on_progress=lambda _: None,
        should_stop=lambda: False,
        num_threads=settings.trainer.num_threads,
    )
    return (training.adapter_dir / "adapter_model.safetensors").read_bytes()


def test_a_running_job_is_cancelled_within_a_step_and_the_worker_goes_on(
    submit: Submit, wait_for: Wait, start_worker: Start, word_problems: str, sessions: sessionmaker[Session]
) -> None:
    endless = STEADY.model_copy(update={"max_steps": 1_000_000, "eval_steps": 1000})
    start_worker()
    job_id = submit(ExpertJobSpec(name="math", training_file=word_problems, hyperparameters=endless))
    wait_for(job_id, is_training)

    with sessions.begin() as session:
        request_cancel(session, job_id)
    row = wait_for(job_id, timeout_s=10.0)

    assert row.status == JobStatus.CANCELLED
    assert wait_for(submit(MISSING)).error["code"] == "file_missing"
