"""`up` as a process: stopped, killed, started twice."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from services.local_stack.down import stop_stack
from services.local_stack.errors import AlreadyRunning
from services.local_stack.postgres import answers
from services.local_stack.state_folder import StateFolder
from services.local_stack.valkey import pings

_SCRIPT = Path(__file__).with_name("stores_only.py")
_PATIENCE_S = 30.0


class Up:
    """A running `up` with stores only."""

    def __init__(self, state: StateFolder) -> None:
        self.state = state
        self.process = subprocess.Popen(
            [sys.executable, _SCRIPT, state.root], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.output = self._read_until("is ready")
        self.pids = [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def _read_until(self, words: str) -> str:
        assert self.process.stdout
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if words in line:
                break
        return "".join(lines)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        self.process.communicate(timeout=_PATIENCE_S)
        return self.process.returncode


@pytest.fixture(scope="module")
def state(server_folder: Path) -> StateFolder:
    """One state folder for all these tests: what one leaves behind, the next one finds."""
    return StateFolder(server_folder / "state")


@pytest.fixture
def start_up(state: StateFolder) -> Iterator[Callable[[], Up]]:
    """Starts `up` in the state folder, as often as wanted."""
    started = []

    def start() -> Up:
        started.append(Up(state))
        return started[-1]

    yield start
    for up in started:
        up.stop(signal.SIGTERM)


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_leaves_no_process_no_lock_and_no_endpoints(
    start_up: Callable[[], Up], number: signal.Signals
) -> None:
    up = start_up()

    exit_code = up.stop(number)

    assert exit_code == 0
    assert not any(_lives(pid) for pid in up.pids)
    assert sorted(path.name for path in up.state.root.iterdir()) == ["logs", "postgres", "valkey"]


def test_kill_9_takes_the_stores_along_and_does_not_block_the_next_start(start_up: Callable[[], Up]) -> None:
    first = start_up()

    first.stop(signal.SIGKILL)
    second = start_up()

    _wait_until_gone(first.pids)
    endpoints = second.state.endpoints()
    assert endpoints
    assert answers(endpoints.database_url)()
    assert pings(endpoints.redis_url)()


def test_a_second_up_is_refused_and_names_the_first(start_up: Callable[[], Up]) -> None:
    up = start_up()

    with pytest.raises(AlreadyRunning, match=f"Process {up.process.pid} already runs"), up.state.held():
        pass


def test_a_killed_store_comes_back_with_its_address(start_up: Callable[[], Up]) -> None:
    up = start_up()
    endpoints = up.state.endpoints()
    assert endpoints
    checks = {"postgres": answers(endpoints.database_url), "valkey-server": pings(endpoints.redis_url)}
    children = {child.name(): child for child in psutil.Process(up.process.pid).children()}

    for name in checks:
        children[name].kill()

    deadline = time.monotonic() + _PATIENCE_S
    while not all(check() for check in checks.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children.values())


def test_endpoints_are_for_their_owner_only(start_up: Callable[[], Up]) -> None:
    up = start_up()

    file = up.state.root / "endpoints.json"

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_uid == os.geteuid()


def test_down_ends_the_stack_of_the_folder(start_up: Callable[[], Up]) -> None:
    up = start_up()

    sentence = stop_stack(up.state)

    assert sentence == f"Stopped process {up.process.pid}"
    assert up.process.wait(_PATIENCE_S) == 0
    assert stop_stack(up.state) == f"Nothing runs in {up.state.root}"
