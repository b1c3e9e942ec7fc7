"""Readings that survive an interruption: a system that has been read is not read again."""

import time
from collections.abc import Callable

import numpy as np

from services.trainer_worker.evaluation.systems import BATCH, Reader, Readings, Weigh, read
from services.trainer_worker.evaluation.windows import Windows
from services.trainer_worker.progress import RunControl, StepClock, TrainingProgress, TrainingStopped


def num_batches(windows: Windows | None) -> int:
    """Steps that reading them takes."""
    return -(-len(windows) // BATCH) if windows is not None else 0


class StagedReading:
    """Reads systems one after the other and keeps each one's losses in the run's folder, whole or not at all.

    A step is a batch. Raises TrainingStopped within a batch of `should_stop()`.
    """

    def __init__(self, run: RunControl, *, total_steps: int) -> None:
        self._run = run
        self._total_steps = total_steps
        self._step = 0
        self._num_tokens = 0
        self._clock: StepClock | None = None
        run.folder.mkdir(parents=True, exist_ok=True)

    def read(self, reader: Callable[[], Reader], stage: str, system: str, windows: Windows, weigh: Weigh) -> Readings:
        """The system's readings of these windows. `stage` and `system` name them: the same names, the same readings.

        `reader` is asked for only where they are not kept.
        """
        file = self._run.folder / f"{stage}-{system}.npz"
        if file.exists():
            self._step += num_batches(windows)
            with np.load(file) as kept:
                return Readings(kept["nats_BT"], weigh(windows).float().numpy(), float(kept["tokens_per_s"]))
        whole = reader()
        self._clock = self._clock or StepClock(self._step)
        started_at, tokens_before = time.monotonic(), self._num_tokens
        readings = read(whole, windows, weigh, on_batch=lambda num: self._count(num, system))
        num_read = self._num_tokens - tokens_before
        tokens_per_s = num_read / max(time.monotonic() - started_at, 1e-9)
        half_written = file.with_suffix(".partial")
        with half_written.open("wb") as target:
            np.savez(target, nats_BT=readings.nats_BT, tokens_per_s=tokens_per_s)
        half_written.rename(file)
        return Readings(readings.nats_BT, readings.weights_BTE, tokens_per_s)

    def _count(self, num_tokens: int, system: str) -> None:
        assert self._clock is not None
        if self._run.should_stop():
            raise TrainingStopped("the evaluation was stopped")
        self._step += 1
        self._num_tokens += num_tokens
        self._run.on_progress(
            TrainingProgress(
                f"reading: {system}",
                step=self._step,
                total_steps=self._total_steps,
                seconds_left=self._clock.seconds_left(self._step, self._total_steps),
                num_tokens=self._num_tokens,
            )
        )
