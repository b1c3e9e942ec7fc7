"""Kills a worker, Valkey or Postgres with SIGKILL at random moments, cycle after cycle, while jobs are trained.

Every cycle submits a job, waits for a random state of it (queued, just claimed, at a random step, publishing) and
kills. Worker, Valkey and Postgres (durable, as `adaptive-moe up` starts them) come back as a supervisor would bring
them. At the end every job must have succeeded with exactly one published version, its attempts must be those that its
events tell, and its weights must be, byte for byte, those of a training that nothing interrupted: jobs of one seed are
one training.

    python -m benchmarks.kill_cycles --cycles 50
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.results_file import machine, write_results
from services.local_stack.ports import free_port
from services.local_stack.postgres import open_postgres
from services.local_stack.programs import Program, start, stop
from services.local_stack.valkey import open_valkey
from services.shared.config import Settings
from services.shared.database.rows import ExpertVersionRow, FileRow, JobRow
from services.shared.database.session import migrate, session_factory
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.queue import celery_client, enqueue_job
from services.shared.schemas.jobs import ExpertHyperparameters, ExpertJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.pulse import DATABASE_AWAY

PROJECT: Final = Path(__file__).resolve().parents[1]
MOMENTS: Final = ("queued", "claimed", "training", "publishing", "at random")
VICTIMS: Final = ("worker", "worker", "valkey", "postgres")
"""A worker's death is the hardest case: half of all."""

NUM_STEPS: Final = 40
MAX_ATTEMPTS: Final = 20
"""So many kills may hit one job: what is measured is that none is lost, not when it is given up."""

PATIENCE_S: Final = 300.0


@dataclass
class Server:
    """One of the stack's processes, killed and started again."""

    program: Program
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.process = start(self.program, output=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL to it and all of its own, then a fresh one."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = start(self.program, output=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it."""
        stop(self.program, self.process)


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and in which state of the cycle's job."""

    cycle: int
    victim: str
    moment: str
    status: str
    phase: str
    step: int
    seconds_to_run: float | None
    """From the kill until the job was running, for a worker killed while running; else None."""


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
        deadline = time.monotonic() + PATIENCE_S
        while True:
            row = self.row(job_id)
            if condition(row) or JobStatus(row.status).is_final:
                return row
            if time.monotonic() > deadline:
                raise SystemExit(f"{job_id} is {row.status} in {row.phase!r} at step {row.step}: it is lost")
            time.sleep(0.02)

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


def main() -> None:
    """Run the cycles, check, write the result."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="amoe-kills-", dir="/var/tmp"))
    folder.chmod(0o755)
    where = machine()
    started_at = time.monotonic()
    try:
        with ExitStack() as stack:
            arena = open_arena(folder, options.base_model, stack)
            kills, jobs = run_cycles(arena, options, until=started_at + 60 * options.minutes)
            faults = check(arena, jobs)
            attempts = Counter(arena.row(job_id).attempt for job_id in jobs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(kills, faults, attempts, seconds=time.monotonic() - started_at, where=where, options=vars(options))
    sys.exit(bool(faults))


def run_cycles(arena: Arena, options: argparse.Namespace, *, until: float) -> tuple[list[Kill], list[str]]:
    """The kills, and the jobs, all ended; the first job was left alone."""
    chance = random.Random(options.seed)
    jobs = [arena.submit(0)]
    arena.wait(jobs[0], lambda _: False)
    kills: list[Kill] = []
    while len(kills) < options.cycles and time.monotonic() < until:
        cycle = len(kills) + 1
        jobs.append(arena.submit(cycle))
        kills.append(one_kill(arena, cycle, jobs[-1], chance))
        print(kills[-1], flush=True)
    for job_id in jobs:
        arena.wait(job_id, lambda _: False)
    return kills, jobs


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop earlier, with the cycle that exceeds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-model", default=str(PROJECT / "demo" / "base"))
    return parser.parse_args()


def open_arena(folder: Path, base_model: str, stack: ExitStack) -> Arena:
    """Start durable stores and a worker with a lease of 5 s, and upload a training file."""
    postgres = open_postgres(folder / "postgres", port=free_port())
    valkey = open_valkey(folder / "valkey", port=free_port())
    servers = {"postgres": Server(postgres.program()), "valkey": Server(valkey.program())}
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
        "AMOE_TELEMETRY__LEVEL": "ERROR",
    }
    os.environ.update(variables)
    settings = Settings()
    migrate(postgres.url())
    command = (sys.executable, "-m", "services.trainer_worker.main")
    worker = Program("worker", command, dict(os.environ), PROJECT, is_ready=lambda: True)
    servers["worker"] = Server(worker)
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


def one_kill(arena: Arena, cycle: int, job_id: str, chance: random.Random) -> Kill:
    """Wait for a moment of the job and kill."""
    victim, moment = chance.choice(VICTIMS), chance.choice(MOMENTS)
    at_step = chance.randrange(1, NUM_STEPS)
    conditions: dict[str, Callable[[JobRow], bool]] = {
        "queued": lambda _: True,
        "claimed": lambda row: JobStatus(row.status).is_held,
        "training": lambda row: row.step >= at_step,
        "publishing": lambda row: row.phase == "publishing",
        "at random": lambda row: JobStatus(row.status).is_held,
    }
    arena.wait(job_id, conditions[moment])
    if moment == "at random":
        time.sleep(chance.uniform(0.0, 8.0))
    row = arena.row(job_id)
    killed_at = time.monotonic()
    arena.servers[victim].kill()
    seconds = None
    if victim == "worker" and JobStatus(row.status).is_held:
        attempt = row.attempt
        arena.wait(job_id, lambda now: now.attempt > attempt)
        if arena.row(job_id).attempt > attempt:
            seconds = round(time.monotonic() - killed_at, 2)
    return Kill(cycle, victim, moment, row.status, row.phase, row.step, seconds)


def check(arena: Arena, jobs: list[str]) -> list[str]:
    """Everything that is not as it must be, in words."""
    faults = []
    storage = Storage(arena.settings.storage.root)
    with arena.sessions() as session:
        reference = weights(storage, find_job(session, jobs[0]))
        for job_id in jobs:
            row = find_job(session, job_id)
            if row.status != JobStatus.SUCCEEDED:
                faults.append(f"{job_id} {row.status}: {row.error}")
                continue
            versions = session.scalars(select(ExpertVersionRow).where(ExpertVersionRow.job_id == job_id)).all()
            if [version.digest for version in versions] != [row.result["digest"]]:
                faults.append(f"{job_id} published {len(versions)} versions")
            events = [event.data["status"] for event in list_events(session, job_id) if event.type == "status"]
            if events.count("succeeded") != 1 or events.count("validating") != row.attempt:
                faults.append(f"{job_id} has {row.attempt} attempts, but its events are {events}")
            if weights(storage, row) != reference:
                faults.append(f"{job_id} has other weights than an uninterrupted training")
    return faults


def weights(storage: Storage, row: JobRow) -> bytes:
    """The published adapter, byte for byte; nothing of a job that has published none."""
    if not row.result:
        return b""
    return (storage.artifact(row.result["digest"]) / "adapter_model.safetensors").read_bytes()


def report(
    kills: list[Kill],
    faults: list[str],
    attempts: Counter[int],
    *,
    seconds: float,
    where: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Write the dated result."""
    lines = ["| killed | " + " | ".join(MOMENTS) + " |", "|---|" + "---:|" * len(MOMENTS)]
    for victim in dict.fromkeys(VICTIMS):
        counts = Counter(kill.moment for kill in kills if kill.victim == victim)
        lines.append(f"| {victim} | " + " | ".join(str(counts[moment]) for moment in MOMENTS) + " |")
    back = sorted(kill.seconds_to_run for kill in kills if kill.seconds_to_run is not None)
    lines += ["", f"{len(kills)} kills in {seconds / 60:.1f} minutes; {sum(attempts.values())} jobs."]
    lines.append("Attempts: " + ", ".join(f"{count} jobs took {n}" for n, count in sorted(attempts.items())) + ".")
    if back:
        lines.append(
            f"From `kill -9` of a running job's worker until it ran again: median {back[len(back) // 2]:.1f} s, "
            f"longest {back[-1]:.1f} s (lease 5 s)."
        )
    lines.append("Faults: " + ("; ".join(faults) if faults else "none") + ".")
    figures = {
        "options": options | {"base_model": Path(options["base_model"]).name},
        "kills": [vars(kill) for kill in kills],
        "attempts": dict(sorted(attempts.items())),
        "faults": faults,
        "seconds": round(seconds, 1),
    }
    write_results(
        PROJECT / "benchmarks" / "results" / "kill_cycles",
        title="Jobs under kill -9",
        about="Every job must succeed once, published once, with the weights of an uninterrupted training.",
        machine=where,
        table="\n".join(lines),
        figures=figures,
    )


if __name__ == "__main__":
    main()
