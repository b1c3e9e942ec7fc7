"""A program of the stack: how it is started, when it is ready, how it is stopped."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from services.local_stack.errors import ProgramFailed

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_S = 0.02


@dataclass(frozen=True)
class StopStep:
    """A signal, and how long the program gets to end after it."""

    signal: signal.Signals
    patience_s: float


@dataclass(frozen=True)
class Account:
    """The user and group that a program runs as."""

    user_id: int
    group_id: int


@dataclass(frozen=True)
class Program:
    """What to run, and how to treat it.

    It starts when everything in `after` is ready, and is stopped before everything of lower `rank`, together with its
    equals. `prepare` runs before every start. `is_ready` is a check that may block for a second or two; a program
    without one is finite: it ends by itself, with exit code 0 when all went well.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    is_ready: Callable[[], bool] | None = None
    prepare: Callable[[], None] | None = None
    account: Account | None = None
    after: tuple[str, ...] = ()
    rank: int = 0
    ready_timeout_s: float = 60.0
    death_signal: signal.Signals = signal.SIGTERM
    stop_steps: tuple[StopStep, ...] = field(default=(StopStep(signal.SIGTERM, 10.0),))

    def answers(self) -> bool:
        """True when the program has a check and passes it now."""
        return self.is_ready is not None and self.is_ready()


def spawn(program: Program, *, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `program` in a session of its own, all output to `output`; on Linux it dies with the calling thread."""
    account = program.account or Account(-1, -1)
    launcher = (sys.executable, "-I", "-S", str(_LAUNCHER))
    ids = (str(int(program.death_signal)), str(account.user_id), str(account.group_id))
    return subprocess.Popen(
        [*launcher, *ids, *program.argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(program.environment),
        cwd=program.folder,
        start_new_session=True,
    )


def start(program: Program, *, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Prepare and spawn `program`, and return once it answers. Raises ProgramFailed, leaving nothing behind."""
    if program.prepare:
        program.prepare()
    process = spawn(program, output=output)
    try:
        _wait_until_ready(program, process)
    except BaseException:
        stop(program, process)
        raise
    return process


def _wait_until_ready(program: Program, process: subprocess.Popen[bytes]) -> None:
    """Return once the program answers. Raises ProgramFailed when it ends or stays silent for `ready_timeout_s`."""
    deadline = time.monotonic() + program.ready_timeout_s
    while not program.answers():
        if process.poll() is not None:
            raise ProgramFailed(f"{program.name} ended with exit code {process.returncode} before it was ready.")
        if time.monotonic() > deadline:
            raise ProgramFailed(f"{program.name} was not ready after {program.ready_timeout_s:.0f} s.")
        time.sleep(_POLL_S)


def stop(program: Program, process: subprocess.Popen[bytes]) -> None:
    """End the program: each of its stop steps in turn, then SIGKILL. Returns when it is gone."""
    for step in program.stop_steps:
        if process.poll() is not None:
            return
        process.send_signal(step.signal)
        try:
            process.wait(step.patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
