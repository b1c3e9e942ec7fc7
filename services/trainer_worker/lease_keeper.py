"""Renews a job's lease from a process of its own, because importing torch or a long call into C can hold the job's
interpreter, and with it any thread, for longer than a lease."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.shared.config import Settings
from services.shared.database.session import open_engine, session_factory
from services.shared.job_lease import renew_leases
from services.trainer_worker.pulse import DATABASE_AWAY


@contextmanager
def kept_leases(owner: str, settings: Settings) -> Iterator[None]:
    """Inside the block, whatever job `owner` runs keeps its lease for as long as this process lives.

    Forks: enter it before any thread is started and before torch is imported.
    """
    parent = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        try:
            _keep(owner, settings, parent)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)


def _keep(owner: str, settings: Settings, parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the job's process decides when it is over
    engine = open_engine(settings.database, application_name="adaptive-moe-lease")
    sessions = session_factory(engine)
    while True:
        time.sleep(settings.trainer.heartbeat_s)
        if os.getppid() != parent:
            return
        try:
            with sessions.begin() as session:
                renew_leases(session, owner=owner, lease_s=settings.trainer.lease_s)
        except DATABASE_AWAY:
            continue
