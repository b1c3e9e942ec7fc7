"""What one training of an expert keeps on disk, and what came of it."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.trainer_worker.checkpoints import ADAPTER_FILES

if TYPE_CHECKING:
    from services.shared.training_text import Example


@dataclass(frozen=True)
class ExpertTraining:
    """A finished training. Losses are nats per token on the validation examples, before and after.

    `seconds`, `tokens_per_s` (evaluations included) and `peak_memory_bytes` are those of the attempt that ended it; of
    several processes, the memory is the first one's.
    """

    adapter_dir: Path
    best_eval_loss: float
    base_eval_loss: float
    num_train_tokens: int
    num_steps: int
    stopped_early: bool
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int


class TrainingFolder:
    """What one training keeps on disk: `inputs`, `checkpoints/`, `adapter/` and, once finished, `result.json`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.adapter = root / "adapter"

    def open(self, fingerprint: str, *, resume: bool) -> None:
        """Make the folder, and empty it of what another training, or one not to be resumed, has left."""
        inputs = self.root / "inputs"
        if not (resume and inputs.exists() and inputs.read_text() == fingerprint):
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            (self.root / "result.json").unlink(missing_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        inputs.write_text(fingerprint)

    def result(self) -> ExpertTraining | None:
        """What an earlier call finished with, if it did."""
        file = self.root / "result.json"
        if not file.exists():
            return None
        return ExpertTraining(**{**json.loads(file.read_text()), "adapter_dir": self.adapter})

    def finish(self, result: ExpertTraining, *, best_checkpoint: Path) -> None:
        """Copy the best checkpoint's adapter out and remember the result; the result file comes last and at once."""
        shutil.rmtree(self.adapter, ignore_errors=True)
        self.adapter.mkdir()
        for name in ADAPTER_FILES:
            shutil.copy2(best_checkpoint / name, self.adapter / name)
        temporary = self.root / "result.json.part"
        temporary.write_text(json.dumps({**asdict(result), "adapter_dir": None}))
        os.replace(temporary, self.root / "result.json")


def fingerprint_of(
    base_model: str,
    train: "Sequence[Example]",
    validation: "Sequence[Example]",
    hyperparameters: ExpertHyperparameters,
) -> str:
    """SHA-256 of all that decides the result; on how many processes it is trained does not."""
    digest = hashlib.sha256(f"{base_model}\n{hyperparameters.model_dump_json()}".encode())
    for part in (train, validation):
        for example in part:
            digest.update(f"{len(example.text)}:{example.completions}:{example.text}".encode())
        digest.update(b"|")
    return digest.hexdigest()
