"""A real worker on real Postgres and Valkey, and jobs on a base model of 260,000 parameters."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import DatabaseSettings, Settings, StorageSettings, TrainerSettings
from services.shared.database.rows import FileRow, JobRow, Row
from services.shared.database.session import session_factory
from services.shared.jobs import create_job, find_job
from services.shared.queue import celery_client, enqueue_job
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import ExpertJobSpec, RouterJobSpec
from services.shared.storage import Storage
from services.trainer_worker.job_runner import JobRunner

Spec = ExpertJobSpec | RouterJobSpec | ImageCooperationJobSpec


@pytest.fixture(autouse=True)
def structured_logs() -> Iterator[None]:
    """Log lines take the way that `configure_logging` gives them, without its handlers."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    yield
    structlog.reset_defaults()
    root.setLevel(level)


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path, shared_material: Path) -> Settings:
    """Short leases, so that a lost worker is noticed within seconds."""
    return Settings(
        base_model=str(shared_material / "models" / "stories260K-hf"),
        database=DatabaseSettings(url=SecretStr(database_url)),
        redis_url=SecretStr(redis_url),
        storage=StorageSettings(root=tmp_path / "storage"),
        trainer=TrainerSettings(
            lease_s=3.0, heartbeat_s=0.5, reap_every_s=0.5, num_threads=1, celery_queue=f"test-{uuid.uuid4().hex[:8]}"
        ),
    )


@pytest.fixture
def sessions(database_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on the module's database, emptied for this test."""
    engine = create_engine(database_url, pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(Row.metadata.tables)} RESTART IDENTITY CASCADE"))
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def upload(sessions: sessionmaker[Session], settings: Settings) -> Callable[[str, str], str]:
    """Store a file as the router service would; returns its id."""

    def upload(filename: str, content: str) -> str:
        file_id = f"file-{uuid.uuid4().hex}"
        Storage(settings.storage.root).upload(file_id).write_text(content, encoding="utf-8")
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        with sessions.begin() as session:
            row = FileRow(id=file_id, purpose="fine-tune", filename=filename, num_bytes=len(content), sha256=sha256)
            session.add(row)
        return file_id

    return upload


@pytest.fixture
def word_problems(shared_material: Path, upload: Callable[[str, str], str]) -> str:
    """A file of 60 real word problems with their solutions."""
    lines = (shared_material / "data" / "text" / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    fields = [json.loads(line) for line in lines]
    examples = [{"prompt": field["question"] + "\n", "completion": field["answer"]} for field in fields]
    return upload("problems.jsonl", "".join(json.dumps(example) + "\n" for example in examples))


@pytest.fixture
def runner(settings: Settings, sessions: sessionmaker[Session]) -> JobRunner:
    """Runs jobs in this process; `dataclasses.replace` gives it other handlers."""
    return JobRunner(
        settings=settings,
        sessions=sessions,
        storage=Storage(settings.storage.root),
        owner="this-test",
        shutting_down=lambda: False,
    )


@pytest.fixture
def run_job(runner: JobRunner, sessions: sessionmaker[Session]) -> Callable[[JobSpecBase], JobRow]:
    """Submit a job, run it in this process and return its row."""

    def run_job(spec: JobSpecBase) -> JobRow:
        with sessions.begin() as session:
            job_id = create_job(session, spec).id
        runner.run(job_id)
        with sessions() as session:
            return find_job(session, job_id)

    return run_job


@pytest.fixture
def submit(sessions: sessionmaker[Session], settings: Settings) -> Callable[[Spec], str]:
    """Submit a job as the router service would; returns its id."""

    def submit(spec: Spec) -> str:
        with sessions.begin() as session:
            job_id = create_job(session, spec, default_queue=settings.trainer.celery_queue).id
        assert enqueue_job(celery_client(settings), job_id)
        return job_id

    return submit


@pytest.fixture
def start_worker(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start worker processes as the stack does; those still alive are stopped at the end."""
    workers: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / f"worker-{len(workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "services.trainer_worker.main"],
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment variables that give them."""
    trainer = settings.trainer
    return {
        "AMOE_BASE_MODEL": settings.base_model,
        "AMOE_DATABASE__URL": settings.database.url.get_secret_value(),
        "AMOE_REDIS_URL": settings.redis_url.get_secret_value(),
        "AMOE_STORAGE__ROOT": str(settings.storage.root),
        "AMOE_TRAINER__LEASE_S": str(trainer.lease_s),
        "AMOE_TRAINER__HEARTBEAT_S": str(trainer.heartbeat_s),
        "AMOE_TRAINER__REAP_EVERY_S": str(trainer.reap_every_s),
        "AMOE_TRAINER__NUM_THREADS": str(trainer.num_threads),
        "AMOE_TRAINER__CELERY_QUEUE": trainer.celery_queue,
        "AMOE_ROUTER__TAP_LAYER": str(settings.router.tap_layer),
    }


@pytest.fixture
def wait_for(sessions: sessionmaker[Session], tmp_path: Path) -> Callable[..., JobRow]:
    """Wait until a job's row meets a condition (default: it has ended) and return the row."""

    def wait_for(
        job_id: str,
        condition: Callable[[JobRow], Any] = lambda row: row.finished_at is not None,
        timeout_s: float = 240.0,
    ) -> JobRow:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with sessions() as session:
                row = find_job(session, job_id)
            if condition(row):
                return row
            time.sleep(0.05)
        logs = "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(tmp_path.glob("worker-*.log")))
        raise AssertionError(
            f"{job_id} is {row.status} in {row.phase!r} at step {row.step} after {timeout_s} s\n{logs}"
        )

    return wait_for
