"""What happens between an expert's training steps: report, checkpoint, stop early, give up on divergence."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from services.shared.errors import JobFailed
from services.trainer_worker.checkpoints import mark_complete
from services.trainer_worker.progress import StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.training.processes import ALONE, Processes

CHECKPOINT_EVERY_S = 120.0
"""A kill loses at most so much work, however rare the evaluations are."""


def eval_losses(state: TrainerState) -> list[float]:
    """Validation losses so far, in order; they are part of every checkpoint."""
    return [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]


def evaluations_without_gain(losses: list[float]) -> int:
    """How many evaluations have passed since the best one."""
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


class EarlyStop(TrainerCallback):
    """Stops after `patience` evaluations without gain (0 = never). Stateless: what it needs is in the checkpoint."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def is_due(self, state: TrainerState) -> bool:
        """True when training should not go on."""
        return 0 < self._patience <= evaluations_without_gain(eval_losses(state))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask the Trainer to stop when it is due."""
        if self.is_due(state):
            control.should_training_stop = True


class Divergence(TrainerCallback):
    """Fails a training whose validation loss is far worse than knowing nothing: it would not come back."""

    def __init__(self, *, base_eval_loss: float, vocab_size: int) -> None:
        self._bound = 1.5 * max(base_eval_loss, math.log(vocab_size))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise JobFailed when the last validation loss is beyond the bound."""
        loss = eval_losses(state)[-1]
        if not loss <= self._bound:  # also true for NaN
            raise JobFailed(
                f"Training diverged: after step {state.global_step} the validation loss is {loss:.3g} nats per token, "
                f"worse than guessing. Try a lower learning_rate (it was {args.learning_rate:g}).",
                code="training_diverged",
            )


class Checkpointing(TrainerCallback):
    """A checkpoint with every evaluation, at the end, every CHECKPOINT_EVERY_S, and before a stop after which the
    training is to go on; each is marked once it is whole, and then told. The first of `processes` decides."""

    def __init__(
        self,
        folder: Path,
        *,
        should_keep_state: Callable[[], bool] = lambda: False,
        on_checkpoint: Callable[[], object] = lambda: None,
        processes: Processes = ALONE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._should_keep_state = should_keep_state
        self._on_checkpoint = on_checkpoint
        self._processes = processes
        self._now = now
        self._saved_at = now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint when one is due, and for an evaluation after the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
            control.should_save = True
        elif self._processes.agree(on=self._should_keep_state() or self._now() - self._saved_at >= CHECKPOINT_EVERY_S):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint that was just written, and stop if that was what it was for."""
        self._processes.wait()  # for the random state that each of them writes
        if self._processes.is_first:
            mark_complete(self._folder / f"checkpoint-{state.global_step}")
            self._on_checkpoint()
        self._saved_at = self._now()
        if self._processes.agree(on=self._should_keep_state()):
            raise TrainingStopped


class Reporting(TrainerCallback):
    """Calls `on_progress` after every step and evaluation."""

    def __init__(
        self,
        on_progress: Callable[[TrainingProgress], None],
        *,
        first_step: int,
        step_loss: Callable[[], float | None],
        num_tokens: Callable[[], int],
    ) -> None:
        self._on_progress = on_progress
        self._step_loss = step_loss
        self._num_tokens = num_tokens
        self._clock = StepClock(first_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the step."""
        self._report("training", state, **kwargs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the validation loss."""
        self._report("evaluating", state, eval_loss=eval_losses(state)[-1], **kwargs)

    def _report(self, phase: str, state: TrainerState, *, eval_loss: float | None = None, **kwargs: Any) -> None:
        scheduler = kwargs.get("lr_scheduler")
        self._on_progress(
            TrainingProgress(
                phase=phase,
                step=state.global_step,
                total_steps=state.max_steps,
                loss=self._step_loss(),
                eval_loss=eval_loss,
                learning_rate=scheduler.get_last_lr()[0] if scheduler is not None else None,
                seconds_left=self._clock.seconds_left(state.global_step, state.max_steps),
                num_tokens=self._num_tokens(),
            )
        )
