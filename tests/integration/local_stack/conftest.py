"""Folders that `nobody` can reach, and programs small enough to watch."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.local_stack.process_records import ProcessRecords
from services.local_stack.programs import Program
from services.local_stack.supervisor import Supervisor


@pytest.fixture
def public_folder(server_folder: Path) -> Path:
    """An empty folder below one that every user may enter."""
    folder = Path(tempfile.mkdtemp(dir=server_folder))
    folder.chmod(0o711)
    return folder


@dataclass
class RecordingReporter:
    """Remembers what happened, and calls `on_event` with each event."""

    events: list[str] = field(default_factory=list)
    on_event: Callable[[str], None] = lambda _: None

    def _add(self, event: str) -> None:
        self.events.append(event)
        self.on_event(event)

    def starting(self, name: str) -> None:
        self._add(f"starting {name}")

    def ready(self, name: str, *, seconds: float) -> None:
        self._add(f"ready {name}")

    def died(self, name: str, *, reason: str, retry_in_s: float) -> None:
        self._add(f"died {name}")

    def all_ready(self) -> None:
        self._add("all ready")

    def stopping(self) -> None:
        self._add("stopping")

    def stopped(self, name: str) -> None:
        self._add(f"stopped {name}")

    def line(self, name: str, text: str) -> None:
        self._add(f"line {name} {text}")


@dataclass
class Trial:
    """A supervisor over small Python programs."""

    folder: Path
    reporter: RecordingReporter = field(default_factory=RecordingReporter)

    def program(self, name: str, code: str, *, is_finite: bool = False, **options: Any) -> Program:
        """A program that runs `code` and is ready as soon as it touches the file `ready.<name>`."""
        flag = self.folder / f"ready.{name}"
        if not is_finite:
            code = f"open({str(flag)!r}, 'w').close()\nimport time\n{code}"
        return Program(
            name,
            (sys.executable, "-I", "-S", "-u", "-c", code),
            environment={},
            folder=self.folder,
            is_ready=None if is_finite else flag.exists,
            **options,
        )

    def supervisor(self, *programs: Program) -> Supervisor:
        """A supervisor of the programs that tells this trial's reporter."""
        records = ProcessRecords(self.folder / "processes.json")
        return Supervisor(programs, logs=self.folder, records=records, reporter=self.reporter)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """An empty trial."""
    return Trial(tmp_path)
