"""A job's steps in order: each leaves its outcome in the job's folder when it is done, and is not done again."""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.trainer_worker.job_context import JobContext

Figures = Mapping[str, Any]


class Steps:
    """What has been done is in `told`, as the job's result shows it; each becomes an event too, when it is done."""

    def __init__(self, context: JobContext) -> None:
        self.told: list[dict[str, Any]] = []
        self._context = context
        self._folder = context.folder.work / "steps"
        self._folder.mkdir(exist_ok=True)

    def run(
        self, name: str, work: Callable[[], Figures], *, holds: Callable[[Figures], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The figures of `work()`, or those that it left when an earlier attempt was through with it and that still
        hold."""
        file = self._folder / f"{name}.json"
        outcome: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if outcome is None or not holds(outcome["figures"]):
            self._context.enter(name)
            began_at = _now()
            outcome = done(name, work(), started_at=began_at)
            _write(file, outcome)
            self._context.note(f"Step {name}: done.", data=outcome)
        self.told.append(outcome)
        figures: dict[str, Any] = outcome["figures"]
        return figures


def done(name: str, figures: Figures, *, started_at: str | None = None) -> dict[str, Any]:
    """A step that has just ended, as it is told; without a start, it took no time."""
    now = _now()
    return {"step": name, "state": "done", "started_at": started_at or now, "finished_at": now, "figures": figures}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _write(file: Path, outcome: Mapping[str, Any]) -> None:
    """Whole or not at all, also if the machine goes down."""
    half_written = file.with_suffix(".part")
    with half_written.open("w", encoding="utf-8") as target:
        json.dump(outcome, target)
        target.flush()
        os.fsync(target.fileno())
    os.replace(half_written, file)
