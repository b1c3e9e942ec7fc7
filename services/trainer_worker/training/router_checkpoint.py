"""Checkpoints of a router's training: with what is in one, and the same inputs, the next step is the same."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from services.trainer_worker.checkpoints import keep_only_last, last_complete, mark_complete
from services.trainer_worker.training.expert_callbacks import CHECKPOINT_EVERY_S
from services.trainer_worker.training.router_trainer import RouterStep
from services.trainer_worker.training.spliced_documents import DocumentSplicer

_CHECKPOINTS_PER_TRAINING: Final = 10
_TENSORS: Final = "state.safetensors"
_REST: Final = "state.json"


class Trainee(Protocol):
    """What is trained: everything that its next step depends on beside its data, as named tensors."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Totals:
    """What a training has come to: steps done, the last balance loss, all tokens turned away."""

    num_steps: int = 0
    load_balance: float = 0.0
    num_overflow: int = 0

    def plus(self, step: RouterStep) -> "Totals":
        """After one more step."""
        return Totals(self.num_steps + 1, step.load_balance, self.num_overflow + step.num_overflow)


class RouterCheckpoints:
    """`checkpoints/checkpoint-<step>` below `folder`, of one training that `inputs` identifies; others' are removed."""

    def __init__(
        self, folder: Path, *, inputs: str, total_steps: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder / "checkpoints"
        self._every = max(total_steps // _CHECKPOINTS_PER_TRAINING, 1)
        self._now = now
        self._saved_at = now()
        known = folder / "inputs"
        if not (known.exists() and known.read_text() == inputs):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        known.write_text(inputs)

    def is_due(self, num_steps: int) -> bool:
        """About ten times in a training, and so often that a kill costs two minutes at most."""
        return num_steps % self._every == 0 or self._now() - self._saved_at >= CHECKPOINT_EVERY_S

    def save(self, trainer: Trainee, splicer: DocumentSplicer, totals: Totals) -> None:
        """Write everything that the next step depends on; the checkpoint before is kept until this one is whole."""
        checkpoint = self._folder / f"checkpoint-{totals.num_steps}"
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir()
        save_file(trainer.state(), checkpoint / _TENSORS)
        rest = {"totals": asdict(totals), "splicer": splicer.state}
        (checkpoint / _REST).write_text(json.dumps(rest))
        mark_complete(checkpoint)
        keep_only_last(self._folder)
        self._saved_at = self._now()

    def restore(self, trainer: Trainee, splicer: DocumentSplicer) -> Totals | None:
        """Put both back to the last whole checkpoint; None when there is none."""
        checkpoint = last_complete(self._folder)
        if checkpoint is None:
            return None
        trainer.load_state(load_file(checkpoint / _TENSORS))
        rest = json.loads((checkpoint / _REST).read_text())
        splicer.state = rest["splicer"]
        return Totals(**rest["totals"])
