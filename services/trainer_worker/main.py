"""The worker process: Celery in front, and a reaper beside it. Runs until SIGTERM or SIGINT.

On either, the running job stops within one step, is queued again and goes on elsewhere from its last checkpoint.
"""

import logging
import os
import subprocess
import sys
import threading
import warnings

from celery.platforms import SecurityWarning

from services.shared.config import Settings
from services.shared.telemetry import configure_logging
from services.trainer_worker.celery_app import WORKER_ARGUMENTS, worker_app

_REAPER_RESTART_S = 1.0


def main() -> None:
    """Run a worker with the settings of this process's environment."""
    settings = Settings()
    configure_logging(settings.telemetry, service="worker")
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Celery warns of root because of pickle; here messages are JSON, and a message is a job's id.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    reaper = _Reaper()
    reaper.start()
    try:
        worker_app(settings).worker_main(list(WORKER_ARGUMENTS))
    finally:
        reaper.stop()


class _Reaper:
    """Keeps `services.trainer_worker.reaper` running as a process: a thread in this one could hold a lock at a fork."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="reaper-keeper", daemon=True)

    def start(self) -> None:
        """Start it, and start it again whenever it ends."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        if self._process is not None:
            self._process.terminate()

    def _keep(self) -> None:
        while not self._ended.is_set():
            command = [sys.executable, "-m", "services.trainer_worker.reaper", str(os.getpid())]
            self._process = subprocess.Popen(command)
            self._process.wait()
            self._ended.wait(_REAPER_RESTART_S)


if __name__ == "__main__":
    main()
