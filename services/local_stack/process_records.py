"""Which processes a stack started, kept on disk: the next `up` ends what a killed one left behind."""

import contextlib
import json
import os
import signal
from pathlib import Path

import psutil

MARKER = "ADAPTIVE_MOE_STATE"
"""An environment variable that every process of a stack carries; its value is the state folder."""

_PATIENCE_S = 8.0


class ProcessRecords:
    """A file of process ids with their start times; an id alone may belong to somebody else by now."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._created: dict[int, float] = self._read()

    def add(self, pid: int) -> None:
        """Remember a process that was just started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._created[pid] = psutil.Process(pid).create_time()
            self._write()

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._created.pop(pid, None)
        self._write()

    def sweep(self) -> list[str]:
        """End every recorded process that still lives, and what it started. Returns their names."""
        leaders = [process for pid, created in self._created.items() if (process := _same_process(pid, created))]
        orphans = _session_members(set(self._created), marker=str(self._file.parent))
        family = {*leaders, *orphans, *(child for leader in leaders for child in _children(leader))}
        names = sorted(_name(process) for process in family)
        _end([*family])
        self._created.clear()
        self._write()
        return names

    def _read(self) -> dict[int, float]:
        if not self._file.exists():
            return {}
        return {int(pid): created for pid, created in json.loads(self._file.read_text()).items()}

    def _write(self) -> None:
        if not self._created:
            self._file.unlink(missing_ok=True)
            return
        unfinished = self._file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self._created))
        unfinished.rename(self._file)


def _same_process(pid: int, created: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        return process if alive and abs(process.create_time() - created) < 0.1 else None
    except psutil.NoSuchProcess:
        return None


def _session_members(sessions: set[int], *, marker: str) -> list[psutil.Process]:
    """Processes in one of our sessions whose leader may be gone; the marker proves that they are ours."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions and process.environ().get(MARKER) == marker:
                members.append(process)
    return members


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} ({process.pid})"
    return str(process.pid)


def _end(processes: list[psutil.Process]) -> None:
    """SIGINT for Postgres, which takes it for a fast shutdown, SIGTERM for the others; SIGKILL for who stays."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "postgres":
                process.send_signal(signal.SIGINT)
            else:
                process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_PATIENCE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_PATIENCE_S)
