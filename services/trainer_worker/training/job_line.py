"""The line between a job's process and the first of the processes that train for it, and what ends with it.

It is a socket that all of them have as their standard input, so that it needs no name, and closes in all of them when
the job's process ends, however it ends. Each message is JSON, and is answered before the next.
"""

import json
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from services.trainer_worker.progress import TrainingProgress, TrainingStopped

_LISTEN_EVERY_S: Final = 0.2
_STANDARD_INPUT: Final = 0


class JobLine:
    """The end of the process that trains."""

    def __init__(self) -> None:
        self._connection = Connection(_STANDARD_INPUT)

    def on_progress(self, progress: TrainingProgress) -> None:
        """Report where the training is."""
        self._ask("progress", **asdict(progress))

    def on_checkpoint(self) -> None:
        """Say that another checkpoint is whole; return when the job has done with it."""
        self._ask("checkpoint")

    def should_keep_state(self) -> bool:
        """Whether the training is to stop at the end of its step, to go on later."""
        return bool(self._ask("keep_state"))

    def _ask(self, question: str, **about: Any) -> Any:
        self._connection.send_bytes(json.dumps({"question": question, "about": about}).encode())
        return json.loads(self._connection.recv_bytes())


def end_with_the_job() -> None:
    """From now on, end this process as soon as the job's process has ended or closed the line."""

    def wait() -> None:
        hung_up = select.poll()
        hung_up.register(_STANDARD_INPUT, 0)  # no event but the one that always counts: the other end is closed
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=wait, name="job-line", daemon=True).start()


@dataclass(frozen=True)
class JobCalls:
    """What a training asks of its job, as `train_expert` does."""

    on_progress: Callable[[TrainingProgress], None]
    should_stop: Callable[[], bool]
    should_keep_state: Callable[[], bool]
    on_checkpoint: Callable[[], object]


class JobEnd:
    """The job's end of a line; `theirs` is for the standard input of those who train, and for nobody else."""

    def __init__(self, calls: JobCalls) -> None:
        self._calls = calls
        self._connection, self.theirs = Pipe()
        self._has_stepped = False

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Answer until the line is closed or, with nothing left to answer, `is_over()`.

        Raises TrainingStopped when the training is to stop and has no state worth waiting for; one that is to be kept
        is the training's own to keep, at the end of its step.
        """
        self.theirs.close()
        while True:
            over = is_over()
            if self._connection.poll(_LISTEN_EVERY_S):
                try:
                    message = json.loads(self._connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    return
                self._answer(message["question"], message["about"])
            elif over:
                return
            if self._calls.should_stop() and not (self._has_stepped and self._calls.should_keep_state()):
                raise TrainingStopped

    def close(self) -> None:
        """Whoever still trains ends within a moment."""
        self.theirs.close()
        self._connection.close()

    def _answer(self, question: str, about: dict[str, Any]) -> None:
        answer: bool | None = None
        if question == "progress":
            progress = TrainingProgress(**about)
            self._has_stepped = self._has_stepped or progress.phase == "training"
            self._calls.on_progress(progress)
        elif question == "checkpoint":
            self._calls.on_checkpoint()
        elif question == "keep_state":
            answer = self._calls.should_keep_state()
        with suppress(BrokenPipeError, ConnectionResetError):  # it ended meanwhile: why, its launcher tells
            self._connection.send_bytes(json.dumps(answer).encode())
