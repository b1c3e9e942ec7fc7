"""How a training tells where it is and learns that it should stop."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is. `seconds_left` is an estimate from this attempt's steps; losses are nats per token.

    `num_tokens` are those read in this attempt so far, padding included; `figures` are a kind's own metrics by name.
    """

    phase: str
    step: int
    total_steps: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    seconds_left: float | None = None
    num_tokens: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


class TrainingStopped(Exception):
    """Raised out of a training when `should_stop` said so; what was checkpointed stays and can be resumed."""


@dataclass(frozen=True)
class RunControl:
    """What a long run is given: the `folder` that keeps what is done, whom to tell where it is, and when to stop."""

    folder: Path
    on_progress: Callable[[TrainingProgress], None]
    should_stop: Callable[[], bool]

    def within(self, name: str) -> "RunControl":
        """The same with a folder of its own inside this one."""
        return replace(self, folder=self.folder / name)


class StepClock:
    """Estimates the seconds left from the steps done since it was made."""

    def __init__(self, first_step: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._first_step = first_step
        self._started_at = now()

    def seconds_left(self, step: int, total_steps: int) -> float | None:
        """Seconds until `total_steps` at the pace so far, or None before the first step."""
        done = step - self._first_step
        if done <= 0:
            return None
        return (self._now() - self._started_at) / done * max(total_steps - step, 0)
