"""The running job's link to its row: a thread that renews the lease, writes progress and events, and listens.

The job's own thread never waits for the database; while that is away, training goes on.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import TrainerSettings
from services.shared.job_events import EventLevel, EventType, add_event
from services.shared.job_lease import Lease, read_lease, record_checkpoints, record_progress, renew_lease
from services.shared.job_metrics import record_metrics
from services.shared.schemas.jobs import JobProgress
from services.shared.telemetry import get_logger
from services.trainer_worker.metric_series import MetricPoint, MetricSeries
from services.trainer_worker.progress import TrainingProgress

log = get_logger(__name__)

DATABASE_AWAY: Final = (OperationalError, InterfaceError, PoolTimeout)
_LISTEN_EVERY_S: Final = 0.5
_METRICS_PER_JOB: Final = 100


@dataclass(frozen=True)
class Event:
    """A line of the job's history that is not written yet."""

    message: str
    type: EventType
    level: EventLevel
    data: Mapping[str, Any]


class Pulse:
    """Runs inside `with`. `lost`, `cancel_requested` and `pause_requested` are what the row said last; the first two
    never go back to False."""

    def __init__(self, job_id: str, *, owner: str, sessions: sessionmaker[Session], settings: TrainerSettings) -> None:
        self.lost = False
        self.cancel_requested = False
        self.pause_requested = False
        self.orphaned = False
        self._job_id = job_id
        self._owner = owner
        self._sessions = sessions
        self._settings = settings
        self._parent = os.getppid()
        self._renewed_at = time.monotonic()
        self._progress: TrainingProgress | None = None
        self._counted: TrainingProgress | None = None
        self._last_metrics_step = 0
        self._events: deque[Event] = deque()
        self._checkpoints: Sequence[Mapping[str, Any]] | None = None
        self._series = MetricSeries()
        self._points: deque[MetricPoint] = deque()
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, progress: TrainingProgress) -> None:
        """Remember where the job is; evaluations and about a hundred steps in between become events, about a thousand
        points of its time series."""
        self._progress = self._with_steps(progress)
        if (point := self._series.point(progress)) is not None:
            self._points.append(point)
        due = progress.step - self._last_metrics_step >= max(progress.total_steps // _METRICS_PER_JOB, 1)
        if progress.eval_loss is not None or (progress.loss is not None and due):
            self._last_metrics_step = progress.step
            self._events.append(Event(_sentence(progress), "metrics", "info", _metrics(progress)))

    def _with_steps(self, progress: TrainingProgress) -> TrainingProgress:
        # What a phase without steps follows may not have been written yet: its count must not be lost.
        if progress.total_steps:
            self._counted = progress
        elif self._counted is not None:
            return replace(self._counted, phase=progress.phase, seconds_left=None)
        return progress

    def note(self, message: str, *, level: EventLevel = "info", data: Mapping[str, Any] | None = None) -> None:
        """Remember an event."""
        self._events.append(Event(message, "message", level, data or {}))

    def keep_checkpoints(self, checkpoints: Sequence[Mapping[str, Any]]) -> None:
        """Remember which checkpoints are published, instead of those said before."""
        self._checkpoints = checkpoints

    def flush(self) -> None:
        """Renew the lease and write what has not been written yet. Raises what the database raises."""
        self._beat(renew=True)

    def _run(self) -> None:
        was_away = False
        while not self._ended.wait(min(_LISTEN_EVERY_S, self._settings.heartbeat_s)):
            self.orphaned = self.orphaned or os.getppid() != self._parent
            try:
                self._beat(renew=time.monotonic() - self._renewed_at >= self._settings.heartbeat_s)
            except DATABASE_AWAY as error:
                if not was_away:
                    log.warning("the database is away; the job goes on", reason=str(error).splitlines()[0][:200])
                was_away = True
            else:
                was_away = False

    def _beat(self, *, renew: bool) -> None:
        with self._writing:
            progress, events, points = self._progress, tuple(self._events), tuple(self._points)
            checkpoints = self._checkpoints
            with self._sessions.begin() as session:
                lease = self._lease(session, renew=renew)
                if lease.held:
                    self._write(session, progress, events)
                    self._write_points(session, points)
                    if checkpoints is not None:
                        record_checkpoints(session, self._job_id, owner=self._owner, checkpoints=checkpoints)
            self._forget(progress, len(events))
            if self._checkpoints is checkpoints:
                self._checkpoints = None
            for _ in points:
                self._points.popleft()
        self.lost = self.lost or not lease.held
        self.cancel_requested = self.cancel_requested or lease.cancel_requested
        self.pause_requested = lease.pause_requested

    def _lease(self, session: Session, *, renew: bool) -> Lease:
        if not renew:
            return read_lease(session, self._job_id, owner=self._owner)
        lease = renew_lease(session, self._job_id, owner=self._owner, lease_s=self._settings.lease_s)
        self._renewed_at = time.monotonic()
        return lease

    def _write(self, session: Session, progress: TrainingProgress | None, events: Sequence[Event]) -> None:
        if progress is not None:
            record_progress(session, self._job_id, owner=self._owner, progress=_row_progress(progress))
        for event in events:
            add_event(session, self._job_id, event.message, level=event.level, type=event.type, data=event.data)

    def _write_points(self, session: Session, points: Sequence[MetricPoint]) -> None:
        by_step: dict[int, dict[str, Any]] = {}
        for point in points:
            by_step.setdefault(point.step, {}).update(point.figures)
        record_metrics(session, self._job_id, by_step)

    def _forget(self, progress: TrainingProgress | None, num_events: int) -> None:
        if self._progress is progress:
            self._progress = None
        for _ in range(num_events):
            self._events.popleft()


def with_patience(action: Callable[[], None], *, patience_s: float, is_over: Callable[[], bool]) -> bool:
    """Do `action`, again and again while the database is away, for `patience_s`; False when it could not be done."""
    deadline = time.monotonic() + patience_s
    pause_s = 0.2
    while True:
        try:
            action()
        except DATABASE_AWAY:
            if time.monotonic() + pause_s > deadline or is_over():
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)
        else:
            return True


def _row_progress(progress: TrainingProgress) -> JobProgress:
    return JobProgress(
        phase=progress.phase,
        step=progress.step,
        total_steps=progress.total_steps or None,
        loss=progress.loss,
        seconds_left=progress.seconds_left,
    )


def _metrics(progress: TrainingProgress) -> dict[str, Any]:
    figures = {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss": progress.loss,
        "eval_loss": progress.eval_loss,
        "learning_rate": progress.learning_rate,
        "seconds_left": progress.seconds_left,
    }
    return {key: value for key, value in figures.items() if value is not None}


def _sentence(progress: TrainingProgress) -> str:
    step = f"Step {progress.step} of {progress.total_steps}"
    losses = [("loss", progress.loss), ("validation loss", progress.eval_loss)]
    return step + "".join(f", {name} {loss:.4f}" for name, loss in losses if loss is not None) + "."
