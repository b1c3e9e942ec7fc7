"""Which of a training's steps become points of its time series, and what a point holds."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.trainer_worker.progress import TrainingProgress

_POINTS_PER_JOB: Final = 1000
"""About so many steps are kept, evenly spaced, and every evaluation."""


@dataclass(frozen=True)
class MetricPoint:
    """What was measured at a step."""

    step: int
    figures: Mapping[str, Any]


class MetricSeries:
    """Picks points from a training's reports. Which steps are kept does not depend on interruptions."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started_at = now()
        self._last_tokens: tuple[float, int] | None = None

    def point(self, progress: TrainingProgress) -> MetricPoint | None:
        """The report as a point; None when it is not to be kept."""
        stride = max(progress.total_steps // _POINTS_PER_JOB, 1)
        is_due = progress.step % stride == 0 or progress.step == progress.total_steps
        has_figures = progress.loss is not None or bool(progress.figures)
        if progress.step < 1 or (progress.eval_loss is None and not (is_due and has_figures)):
            return None
        figures = {
            "loss": progress.loss,
            "eval_loss": progress.eval_loss,
            "learning_rate": progress.learning_rate,
            "seconds": round(self._now() - self._started_at, 3),
            "tokens_per_s": self._tokens_per_s(progress.num_tokens),
            **progress.figures,
        }
        return MetricPoint(progress.step, {name: value for name, value in figures.items() if value is not None})

    def _tokens_per_s(self, num_tokens: int | None) -> float | None:
        """Since the point before."""
        if num_tokens is None:
            return None
        now, before = self._now(), self._last_tokens
        if before is not None and (num_tokens <= before[1] or now <= before[0]):
            return None
        self._last_tokens = (now, num_tokens)
        return round((num_tokens - before[1]) / (now - before[0]), 1) if before is not None else None
