"""What a job's code gets: its spec, its folder, and ways to report and to learn that it should stop."""

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.job_events import EventLevel
from services.shared.storage import ARTIFACTS, Storage
from services.shared.telemetry import hide_secrets
from services.trainer_worker.checkpoints import keep_only_last, last_complete
from services.trainer_worker.progress import RunControl, TrainingProgress, TrainingStopped

_TOLD_ANYWAY = frozenset({"level", "logger", "timestamp", "service", "job", "_record", "_from_structlog"})


class Note(Protocol):
    """Adds an event to the job's history."""

    def __call__(self, message: str, *, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None: ...


@dataclass(frozen=True)
class JobContext:
    """One attempt at one job. `report`, `note` and `should_stop` may be called as often as one likes: none blocks.
    `keep_checkpoints` takes all that are published, as the row is to tell them.

    `should_keep_state` says of a job that should stop that it will go on later (it is to be paused, or the worker shuts
    down): what can checkpoint does so first, at the end of its step, and then raises TrainingStopped.
    """

    job_id: str
    spec: Mapping[str, Any]
    attempt: int
    base_fingerprint: str | None
    settings: Settings
    storage: Storage
    sessions: sessionmaker[Session]
    folder: "JobFolder"
    report: Callable[[TrainingProgress], None]
    note: Note
    keep_checkpoints: Callable[[Sequence[Mapping[str, Any]]], None]
    should_stop: Callable[[], bool]
    should_keep_state: Callable[[], bool]

    def enter(self, phase: str) -> None:
        """Report the next phase, unless the job should stop: then raise TrainingStopped."""
        self.stop_if_asked()
        self.report(TrainingProgress(phase=phase, step=0, total_steps=0))

    def run_control(self, *folders: str) -> RunControl:
        """What a long run of the job is given, with its folder inside of the job's."""
        return RunControl(self.folder.work.joinpath(*folders), self.report, self.should_stop)

    def stop_if_asked(self) -> None:
        """Raise TrainingStopped if the job should stop."""
        if self.should_stop():
            raise TrainingStopped


class JobFolder:
    """`<storage root>/jobs/<job id>/`: the log for good, `work/` until the job has ended.

    A folder that appears whole in `artifacts` can be looked into while the job is at work or paused.
    """

    def __init__(self, storage: Storage, job_id: str) -> None:
        self.root = storage.job_folder(job_id)
        self.work = self.root / "work"
        self.artifacts = self.work / ARTIFACTS
        self.log_file = self.root / "log.jsonl"
        self.work.mkdir(parents=True, exist_ok=True)

    def keep_last_checkpoint(self) -> Path | None:
        """Of a failed job: keep the newest whole checkpoint, for whoever looks into it; where it is."""
        checkpoints = self.work / "checkpoints"
        keep_only_last(checkpoints)
        return last_complete(checkpoints)

    def clear_work(self) -> None:
        """Remove checkpoints and whatever else only the running job needed."""
        shutil.rmtree(self.work, ignore_errors=True)


class JobLog(logging.Handler):
    """Every log line of the job's process as one JSON object in the job's log, tracebacks included."""

    def __init__(self, file: Path) -> None:
        super().__init__(level=logging.INFO)
        self._stream = file.open("a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        fields: dict[str, Any] = dict(record.msg) if isinstance(record.msg, dict) else {"event": record.getMessage()}
        error = fields.pop("exc_info", None) or record.exc_info
        if error:
            _, value, _ = error if isinstance(error, tuple) else sys.exc_info()
            fields["traceback"] = "".join(traceback.format_exception(value)) if value is not None else None
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": fields.pop("event", ""),
            **{key: value for key, value in fields.items() if key not in _TOLD_ANYWAY},
        }
        try:
            cleaned = hide_secrets(None, "", line)
            self._stream.write(json.dumps(cleaned, ensure_ascii=False, default=str) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a full disk must not hide the error that is being logged
            self.handleError(record)

    def close(self) -> None:
        """Close the file; what a full disk has not taken is lost, as `emit` has said."""
        with suppress(OSError):
            self._stream.close()
        super().close()
