"""A worker, and the Postgres and the Valkey that it needs, each away for a while."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.ports import free_port
from services.local_stack.postgres import Postgres, open_postgres
from services.local_stack.programs import Program, start, stop
from services.local_stack.valkey import Valkey, open_valkey
from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.database.session import migrate
from services.shared.job_lease import claim_job
from services.shared.jobs import create_job, find_job
from services.shared.queue import celery_client, enqueue_job
from services.shared.schemas.jobs import ExpertJobSpec

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HOPELESS = ExpertJobSpec(name="math", training_file="file-" + "0" * 32)
"""Ends at once, because its file does not exist."""


class Server:
    """A server of this test's own that it can take away."""

    def __init__(self, program: Program, log: Path) -> None:
        self._program = program
        self._log = log.open("ab")
        self._process = start(program, output=self._log)

    @contextmanager
    def away(self) -> Iterator[None]:
        stop(self._program, self._process)
        yield
        self._process = start(self._program, output=self._log)

    def stop(self) -> None:
        stop(self._program, self._process)
        self._log.close()


@pytest.fixture(scope="module")
def own_postgres(server_folder: Path) -> Iterator[tuple[Postgres, Server]]:
    postgres = open_postgres(server_folder / "outage-postgres", port=free_port(), disposable=True)
    server = Server(postgres.program(), server_folder / "outage-postgres.log")
    migrate(postgres.url("postgres"))
    yield postgres, server
    server.stop()


@pytest.fixture(scope="module")
def own_valkey(server_folder: Path) -> Iterator[tuple[Valkey, Server]]:
    valkey = open_valkey(server_folder / "outage-valkey", port=free_port(), disposable=True)
    server = Server(valkey.program(), server_folder / "outage-valkey.log")
    yield valkey, server
    server.stop()


@pytest.fixture(scope="module")
def database_url(own_postgres: tuple[Postgres, Server]) -> str:
    return own_postgres[0].url("postgres")


@pytest.fixture(scope="module")
def redis_url(own_valkey: tuple[Valkey, Server]) -> str:
    return own_valkey[0].url()


def test_the_worker_takes_jobs_again_after_both_were_away(
    own_postgres: tuple[Postgres, Server],
    own_valkey: tuple[Valkey, Server],
    start_worker: Callable[[], "subprocess.Popen[bytes]"],
    submit: Callable[[ExpertJobSpec], str],
    wait_for: Callable[..., JobRow],
    sessions: sessionmaker[Session],
    settings: Settings,
) -> None:
    worker = start_worker()
    wait_for(submit(HOPELESS))

    with own_valkey[1].away():
        with sessions.begin() as session:
            submitted_meanwhile = create_job(session, HOPELESS, default_queue=settings.trainer.celery_queue).id
        assert not enqueue_job(celery_client(settings), submitted_meanwhile)
    wait_for(submitted_meanwhile)
    with own_postgres[1].away():
        time.sleep(1.0)  # long enough for the reaper to miss it twice
    wait_for(submit(HOPELESS))

    assert worker.poll() is None


def test_nothing_of_a_killed_worker_stays_behind(
    start_worker: Callable[[], "subprocess.Popen[bytes]"],
    submit: Callable[[ExpertJobSpec], str],
    wait_for: Callable[..., JobRow],
) -> None:
    worker = start_worker()
    wait_for(submit(HOPELESS))
    others = psutil.Process(worker.pid).children(recursive=True)

    worker.kill()
    worker.wait()

    deadline = time.monotonic() + 60
    while any(_is_alive(process) for process in others):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_alive(process: psutil.Process) -> bool:
    """A process that nobody has reaped yet is dead too."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_lease_is_kept_while_a_call_into_c_holds_the_interpreter(
    sessions: sessionmaker[Session], environment: dict[str, str], tmp_path: Path
) -> None:
    with sessions.begin() as session:
        job_id = create_job(session, HOPELESS).id
        assert claim_job(session, job_id, owner="busy", lease_s=600.0, max_attempts=1)
    script = tmp_path / "busy.py"
    script.write_text(
        "import ctypes\n"
        "from services.shared.config import Settings\n"
        "from services.trainer_worker.lease_keeper import kept_leases\n"
        "with kept_leases('busy', Settings()):\n"
        "    print('holding', flush=True)\n"
        "    ctypes.PyDLL(None).sleep(60)\n"  # unlike CDLL, PyDLL keeps the interpreter's lock
    )

    with subprocess.Popen([sys.executable, str(script)], env=os.environ | environment, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        assert busy.stdout.readline() == b"holding\n"
        leases = {_lease(sessions, job_id)}
        deadline = time.monotonic() + 50
        while len(leases) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
            leases.add(_lease(sessions, job_id))
        busy.kill()

    assert len(leases) == 4


def _lease(sessions: sessionmaker[Session], job_id: str) -> Any:
    with sessions() as session:
        return find_job(session, job_id).lease_expires_at
