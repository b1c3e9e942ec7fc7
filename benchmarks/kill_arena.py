"""The parts of a stack that benchmarks of jobs kill and start again: durable Postgres and Valkey, and one worker."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.ports import free_port
from services.local_stack.postgres import open_postgres
from services.local_stack.programs import Program, start, stop
from services.local_stack.valkey import open_valkey
from services.shared.config import Settings
from services.shared.database.rows import FileRow, JobRow
from services.shared.database.session import migrate, session_factory
from services.shared.errors import Conflict
from services.shared.job_control import request_pause, resume_job
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.queue import celery_client, enqueue_job
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.pulse import DATABASE_AWAY

PROJECT: Final = Path(__file__).resolve().parents[1]
NUM_STEPS: Final = 40
MAX_ATTEMPTS: Final = 20
"""So many kills may hit one job: what is measured is that none is lost, not when it is given up."""

PATIENCE_S: Final = 900.0
"""When no job has got any further for so long, they are lost: a busy machine makes everything slow, but not still."""


@dataclass
class Server:
    """One of the stack's processes, killed and started again."""

    program: Program
    log: Path
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self.process = start(self.program, output=log)

    def kill(self) -> None:
        """SIGKILL to it and all of its own, then a fresh one."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._start()

    def stop(self) -> None:
        """End it."""
        stop(self.program, self.process)


@dataclass(frozen=True)
class Arena:
    """The running parts and the way to them."""

    servers: dict[str, Server]
    sessions: sessionmaker[Session]
    settings: Settings
    file_id: str

    def submit(self, cycle: int) -> str:
        """A job of its own expert; the seed is the same for all, so its weights must be too."""
        hyperparameters = ExpertHyperparameters(
            rank=4, max_steps=NUM_STEPS, batch_size=1, max_length=32, eval_steps=10, early_stopping_patience=0
        )
        spec = ExpertJobSpec(name=f"cycle-{cycle}", training_file=self.file_id, hyperparameters=hyperparameters)

        def create() -> str:
            with self.sessions.begin() as session:
                return create_job(session, spec).id

        job_id = self.patiently(create)
        enqueue_job(celery_client(self.settings), job_id)
        return job_id

    def row(self, job_id: str) -> JobRow:
        """The job's row now."""

        def read() -> JobRow:
            with self.sessions() as session:
                return find_job(session, job_id)

        return self.patiently(read)

    def wait(self, job_id: str, condition: Callable[[JobRow], bool]) -> JobRow:
        """The row once it meets the condition or has ended."""
        moved_at, seen = time.monotonic(), self.unfinished()
        while True:
            row = self.row(job_id)
            if condition(row) or JobStatus(row.status).is_final:
                return row
            if (now := self.unfinished()) != seen:
                moved_at, seen = time.monotonic(), now
            if time.monotonic() > moved_at + PATIENCE_S:
                raise SystemExit(self.complaint(row))
            time.sleep(0.02)

    def unfinished(self) -> list[tuple[Any, ...]]:
        """Where every job is that has not ended."""
        columns = (JobRow.id, JobRow.status, JobRow.attempt, JobRow.phase, JobRow.step)
        query = select(*columns).where(JobRow.finished_at.is_(None)).order_by(JobRow.id)

        def read() -> list[tuple[Any, ...]]:
            with self.sessions() as session:
                return [tuple(row) for row in session.execute(query)]

        places: list[tuple[Any, ...]] = self.patiently(read)
        return places

    def complaint(self, row: JobRow) -> str:
        """What is known of a job that gets no further."""
        with self.sessions() as session:
            history = [f"{event.at:%T} {event.message}" for event in list_events(session, row.id)]
        log = self.servers["worker"].log.read_text(errors="replace")[-4000:]
        place = f"{row.id} is {row.status} in {row.phase!r} at step {row.step}: it is lost"
        return "\n".join([place, *history, f"unfinished: {self.unfinished()}", log])

    def pause(self, job_id: str) -> None:
        """Ask for a pause; a job that has just ended is left alone."""

        def ask() -> None:
            with self.sessions.begin() as session:
                request_pause(session, job_id)

        self._unless_ended(ask)

    def resume(self, job_id: str) -> None:
        """Queue it again, or take the pause back; a job that is not paused any more is left alone."""

        def ask() -> None:
            with self.sessions.begin() as session:
                resume_job(session, job_id)

        self._unless_ended(ask)
        enqueue_job(celery_client(self.settings), job_id)

    def _unless_ended(self, ask: Callable[[], None]) -> None:
        try:
            self.patiently(ask)
        except Conflict:
            return

    @staticmethod
    def patiently(action: Callable[[], Any]) -> Any:
        """Do it again while the database is away."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return action()
            except DATABASE_AWAY:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def open_arena(folder: Path, base_model: str, stack: ExitStack) -> Arena:
    """Start durable stores and a worker with a lease of 5 s, and upload a training file."""
    postgres = open_postgres(folder / "postgres", port=free_port())
    valkey = open_valkey(folder / "valkey", port=free_port())
    servers = {
        "postgres": Server(postgres.program(), folder / "postgres.log"),
        "valkey": Server(valkey.program(), folder / "valkey.log"),
    }
    variables = {
        "AMOE_BASE_MODEL": base_model,
        "AMOE_DATABASE__URL": postgres.url(),
        "AMOE_REDIS_URL": valkey.url(),
        "AMOE_STORAGE__ROOT": str(folder / "storage"),
        "AMOE_TRAINER__LEASE_S": "5",
        "AMOE_TRAINER__HEARTBEAT_S": "1",
        "AMOE_TRAINER__REAP_EVERY_S": "1",
        "AMOE_TRAINER__NUM_THREADS": "1",
        "AMOE_TRAINER__MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "AMOE_TELEMETRY__LEVEL": "INFO",
    }
    os.environ.update(variables)
    settings = Settings()
    migrate(postgres.url())
    command = (sys.executable, "-m", "services.trainer_worker.main")
    worker = Program("worker", command, dict(os.environ), PROJECT, is_ready=lambda: True)
    servers["worker"] = Server(worker, folder / "worker.log")
    for server in servers.values():
        stack.callback(server.stop)
    engine = create_engine(postgres.url(), pool_pre_ping=True)
    stack.callback(engine.dispose)
    sessions = session_factory(engine)
    return Arena(servers, sessions, settings, upload(sessions, settings))


def upload(sessions: sessionmaker[Session], settings: Settings) -> str:
    """A file of sums; its id."""
    file_id = f"file-{uuid.uuid4().hex}"
    lines = (json.dumps({"prompt": f"{a} + {b} =", "completion": f" {a + b}"}) for a in range(10) for b in range(10))
    text = "\n".join(lines)
    Storage(settings.storage.root).upload(file_id).write_text(text)
    with sessions.begin() as session:
        row = FileRow(
            id=file_id,
            purpose="fine-tune",
            filename="sums.jsonl",
            num_bytes=len(text),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        session.add(row)
    return file_id
