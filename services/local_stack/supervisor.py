"""Keeps the programs of a stack running: started in order, restarted when they die, stopped in reverse order."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from services.local_stack.errors import ProgramFailed, StackError
from services.local_stack.process_records import ProcessRecords
from services.local_stack.programs import Program, StopStep, spawn
from services.local_stack.service_log import ServiceLog

_POLL_S: Final = 0.1
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STABLE_AFTER_S: Final = 60.0
_LAST_OUTPUT_S: Final = 1.0


class Reporter(Protocol):
    """Who is told what happens, as it happens."""

    def starting(self, name: str) -> None:
        """`name` is being started."""

    def ready(self, name: str, *, seconds: float) -> None:
        """`name` answers, or has ended well if it is finite."""

    def died(self, name: str, *, reason: str, retry_in_s: float) -> None:
        """`name` ended by itself and will be started again."""

    def all_ready(self) -> None:
        """Every program is ready for the first time."""

    def stopping(self) -> None:
        """The programs are about to be stopped."""

    def stopped(self, name: str) -> None:
        """`name` has ended because it was asked to."""

    def line(self, name: str, text: str) -> None:
        """`name` wrote a line."""


class Supervisor:
    """Runs programs until it is asked to stop. One instance: one run in one event loop."""

    def __init__(self, programs: Sequence[Program], *, logs: Path, records: ProcessRecords, reporter: Reporter) -> None:
        self._programs = programs
        self._records = records
        self._reporter = reporter
        self._logs = {
            program.name: ServiceLog(
                logs / f"{program.name}.log", on_line=functools.partial(reporter.line, program.name)
            )
            for program in programs
        }
        self._ready = {program.name: asyncio.Event() for program in programs}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._stop_asked = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Return after a stop was asked for and everything has ended. Raises ProgramFailed when the start fails."""
        with self._listening_to_signals():
            keepers = [asyncio.create_task(self._keep(program)) for program in self._programs]
            announcer = asyncio.create_task(self._announce())
            try:
                await self._until_stopped_or_failed(keepers)
            finally:
                self._reporter.stopping()
                await _cancel([*keepers, announcer])
                await self._stop_all()

    def ask_to_stop(self) -> None:
        """Stop in order; asked a second time, kill."""
        if self._stop_asked.is_set():
            self._hurry.set()
        self._stop_asked.set()

    async def _keep(self, program: Program) -> None:
        """Start `program` when what it needs is ready, and again whenever it dies."""
        for name in program.after:
            await self._ready[name].wait()
        await self._start(program)
        backoff = _Backoff()
        while program.is_ready:
            reason = await self._end_of_life(program)
            pause_s = backoff.pause_s(time.monotonic())
            self._reporter.died(program.name, reason=reason, retry_in_s=pause_s)
            await asyncio.sleep(pause_s)
            with contextlib.suppress(StackError):
                await self._start(program)

    async def _end_of_life(self, program: Program) -> str:
        """Wait until `program` has ended, end what it left in its session, and say how it ended."""
        process = self._processes.get(program.name)
        if process is None:
            return "could not be started"
        exit_code = await _exit_code(process)
        await self._stop(program)
        return f"ended with exit code {exit_code}"

    async def _start(self, program: Program) -> None:
        """Prepare and spawn `program`; return when it is ready or, if finite, has ended well. Raises ProgramFailed."""
        self._reporter.starting(program.name)
        began = time.monotonic()
        if program.prepare:
            await asyncio.to_thread(program.prepare)
        process = self._spawn(program)
        try:
            await self._until_ready(program, process)
        except ProgramFailed:
            await self._stop(program)
            raise
        if program.is_ready is None:
            await self._stop(program)
        self._ready[program.name].set()
        self._reporter.ready(program.name, seconds=time.monotonic() - began)

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        # In the loop's own thread: Linux ends a program with the thread that started it.
        reading_end, writing_end = os.pipe()
        try:
            process = spawn(program, output=writing_end)
        except BaseException:
            os.close(reading_end)
            raise
        finally:
            os.close(writing_end)
        self._processes[program.name] = process
        self._records.add(process.pid)
        self._followers[program.name] = asyncio.create_task(self._logs[program.name].follow(reading_end))
        return process

    async def _until_ready(self, program: Program, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + program.ready_timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                if process.returncode == 0 and program.is_ready is None:
                    return
                raise ProgramFailed(await self._obituary(program, f"ended with exit code {process.returncode}"))
            if await asyncio.to_thread(program.answers):
                return
            await asyncio.sleep(_POLL_S)
        raise ProgramFailed(await self._obituary(program, f"was not ready after {program.ready_timeout_s:.0f} s"))

    async def _obituary(self, program: Program, what: str) -> str:
        """What happened to the program, with its last words."""
        await asyncio.wait([self._followers[program.name]], timeout=_LAST_OUTPUT_S)
        log = self._logs[program.name]
        return "\n".join([f"{program.name} {what}. Its last lines (all of them: {log.file}):", *log.last_lines])

    async def _announce(self) -> None:
        for event in self._ready.values():
            await event.wait()
        self._reporter.all_ready()

    async def _until_stopped_or_failed(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        asked = asyncio.create_task(self._stop_asked.wait())
        pending: set[asyncio.Task[None] | asyncio.Task[bool]] = {asked, *keepers}
        while asked in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failures = [error for task in done if (error := task.exception())]
            if failures:
                asked.cancel()
                raise failures[0]

    async def _stop_all(self) -> None:
        for rank in sorted({program.rank for program in self._programs}, reverse=True):
            await asyncio.gather(*(self._stop_for_good(program) for program in self._programs if program.rank == rank))
        for log in self._logs.values():
            log.close()

    async def _stop_for_good(self, program: Program) -> None:
        if program.name in self._processes:
            await self._stop(program)
            self._reporter.stopped(program.name)

    async def _stop(self, program: Program) -> None:
        """End `program` and whatever it left in its session; wait for its last words."""
        process = self._processes.pop(program.name)
        for step in program.stop_steps:
            if process.poll() is None:
                process.send_signal(step.signal)
                await self._wait_for_end(process, step)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await _exit_code(process)
        self._records.remove(process.pid)
        follower = self._followers.pop(program.name)
        await asyncio.wait([follower], timeout=_LAST_OUTPUT_S)
        await _cancel([follower])

    async def _wait_for_end(self, process: subprocess.Popen[bytes], step: StopStep) -> None:
        deadline = time.monotonic() + step.patience_s
        # Polled: the end of a child that is no asyncio subprocess has no event to wait for.
        while process.poll() is None and time.monotonic() < deadline and not self._hurry.is_set():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    @contextlib.contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        # Under nohup, SIGHUP is ignored when we start, and stays so.
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        caught = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
        for number in caught:
            loop.add_signal_handler(number, self.ask_to_stop)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)


class _Backoff:
    """How long to wait before the next restart: longer after each death, short again after a minute of life."""

    def __init__(self) -> None:
        self._pause_s = _FIRST_PAUSE_S
        self._last_death = 0.0

    def pause_s(self, now: float) -> float:
        """The pause after a death at `now`."""
        recent = now - self._last_death < _STABLE_AFTER_S
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if recent else _FIRST_PAUSE_S
        self._last_death = now
        return self._pause_s


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    while (exit_code := process.poll()) is None:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
    return exit_code


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
