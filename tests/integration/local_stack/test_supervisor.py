"""The supervisor with real, small programs."""

import contextlib
import signal
import time

import psutil
import pytest

from services.local_stack.errors import ProgramFailed
from services.local_stack.programs import StopStep
from services.local_stack.supervisor import Supervisor
from tests.integration.local_stack.conftest import Trial

FOREVER = "time.sleep(600)"


def _stop_at(supervisor: Supervisor, trial: Trial, wanted: str) -> None:
    """Ask the supervisor to stop as soon as `wanted` happens."""
    trial.reporter.on_event = lambda event: supervisor.ask_to_stop() if event == wanted else None


class TestSupervisor:
    async def test_starts_in_order_and_stops_in_reverse_order(self, trial: Trial) -> None:
        store = trial.program("store", FOREVER)
        migration = trial.program("migration", "pass", is_finite=True, after=("store",))
        service = trial.program("service", FOREVER, after=("migration",), rank=1)
        supervisor = trial.supervisor(store, migration, service)
        _stop_at(supervisor, trial, "all ready")

        await supervisor.run()

        assert trial.reporter.events == [
            *("starting store", "ready store", "starting migration", "ready migration"),
            *("starting service", "ready service", "all ready"),
            *("stopping", "stopped service", "stopped store"),
        ]

    async def test_a_failed_start_stops_everything_and_tells_the_last_lines(self, trial: Trial) -> None:
        store = trial.program("store", FOREVER)
        broken = trial.program(
            "broken", "print('no such model'); raise SystemExit(3)", is_finite=True, after=("store",)
        )

        with pytest.raises(ProgramFailed, match=r"broken ended with exit code 3(.|\n)*no such model"):
            await trial.supervisor(store, broken).run()

        assert trial.reporter.events[-1] == "stopped store"

    async def test_a_program_that_never_becomes_ready_fails_the_start(self, trial: Trial) -> None:
        silent = trial.program("silent", "import time; time.sleep(600)", is_finite=True, ready_timeout_s=0.3)

        with pytest.raises(ProgramFailed, match=r"silent was not ready after 0 s"):
            await trial.supervisor(silent).run()

    async def test_a_program_that_dies_is_started_again(self, trial: Trial) -> None:
        mortal = trial.program("mortal", "time.sleep(0.1)")
        supervisor = trial.supervisor(mortal)
        trial.reporter.on_event = lambda _: (
            supervisor.ask_to_stop() if trial.reporter.events.count("ready mortal") == 2 else None
        )

        await supervisor.run()

        assert trial.reporter.events.count("died mortal") == 1

    async def test_a_program_that_ignores_its_signal_is_killed(self, trial: Trial) -> None:
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
        program = trial.program("deaf", deaf, stop_steps=(StopStep(signal.SIGTERM, 0.2),))
        supervisor = trial.supervisor(program)
        _stop_at(supervisor, trial, "line deaf deaf")

        began = time.monotonic()
        await supervisor.run()

        assert time.monotonic() - began < 5
        assert trial.reporter.events[-1] == "stopped deaf"

    async def test_a_second_request_to_stop_does_not_wait(self, trial: Trial) -> None:
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)"
        supervisor = trial.supervisor(trial.program("deaf", deaf, stop_steps=(StopStep(signal.SIGTERM, 60.0),)))
        trial.reporter.on_event = lambda event: (
            supervisor.ask_to_stop() if event in ("line deaf deaf", "stopping") else None
        )

        began = time.monotonic()
        await supervisor.run()

        assert time.monotonic() - began < 5

    async def test_grandchildren_end_with_their_program(self, trial: Trial) -> None:
        parent = (
            "import subprocess, sys\n"
            "child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])\n"
            "print(child.pid)\n"
            "time.sleep(600)"
        )
        supervisor = trial.supervisor(trial.program("parent", parent))
        trial.reporter.on_event = lambda event: supervisor.ask_to_stop() if event.startswith("line") else None

        await supervisor.run()

        pid = next(int(event.split()[-1]) for event in trial.reporter.events if event.startswith("line"))
        with contextlib.suppress(psutil.NoSuchProcess):
            _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=5)
            assert not alive

    async def test_output_is_kept_in_a_file_for_each_program(self, trial: Trial) -> None:
        talker = trial.program("talker", "print('one'); print('two')", is_finite=True)
        supervisor = trial.supervisor(talker)
        _stop_at(supervisor, trial, "all ready")

        await supervisor.run()

        assert (trial.folder / "talker.log").read_text() == "one\ntwo\n"

    async def test_nothing_is_left_on_record_after_a_stop(self, trial: Trial) -> None:
        supervisor = trial.supervisor(trial.program("service", FOREVER))
        _stop_at(supervisor, trial, "all ready")

        await supervisor.run()

        assert not (trial.folder / "processes.json").exists()
