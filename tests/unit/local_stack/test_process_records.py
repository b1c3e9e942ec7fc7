"""What a killed `up` left behind is ended; nobody else is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.local_stack.process_records import MARKER, ProcessRecords

_SLEEP = [sys.executable, "-I", "-S", "-c", "import time; print('awake', flush=True); time.sleep(600)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps in a session of its own."""
    process = subprocess.Popen(_SLEEP, stdout=subprocess.DEVNULL, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_ended_by_the_next_run(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    ProcessRecords(tmp_path / "processes.json").add(sleeper.pid)

    ended = ProcessRecords(tmp_path / "processes.json").sweep()

    assert len(ended) == 1
    assert not psutil.pid_exists(sleeper.pid)
    assert not (tmp_path / "processes.json").exists()


def test_a_process_that_took_over_an_old_id_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    long_ago = psutil.Process(sleeper.pid).create_time() - 3600
    (tmp_path / "processes.json").write_text(json.dumps({sleeper.pid: long_ago}))

    ended = ProcessRecords(tmp_path / "processes.json").sweep()

    assert ended == []
    assert sleeper.poll() is None


def test_an_orphan_is_known_by_its_session_and_its_marker(tmp_path: Path) -> None:
    # Not before the child runs: in the middle of exec a process has no environment yet.
    spawn_and_die = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen({_SLEEP!r}, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", spawn_and_die],
        stdout=subprocess.PIPE,
        env={**os.environ, MARKER: str(tmp_path)},
        start_new_session=True,
    )
    output, _ = leader.communicate()
    orphan = psutil.Process(int(output))
    (tmp_path / "processes.json").write_text(json.dumps({leader.pid: orphan.create_time() - 1}))

    ended = ProcessRecords(tmp_path / "processes.json").sweep()

    assert len(ended) == 1
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_has_ended_is_no_trouble(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    records = ProcessRecords(tmp_path / "processes.json")
    records.add(process.pid)
    process.wait()

    assert records.sweep() == []
