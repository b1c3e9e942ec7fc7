"""All that decides a training, as a file for processes that are started for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example


@dataclass(frozen=True)
class TrainingInputs:
    """Those arguments of `train_expert` that say what to train, and the torch threads of one process."""

    base_model: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    hyperparameters: ExpertHyperparameters
    num_threads: int

    @classmethod
    def read(cls, folder: Path) -> "TrainingInputs":
        """What `written` has put into `folder`."""
        return _JSON.validate_json(_file(folder).read_bytes())

    @contextmanager
    def written(self, folder: Path) -> Iterator[None]:
        """Inside the block they are in `folder`."""
        _file(folder).write_bytes(_JSON.dump_json(self))
        try:
            yield
        finally:
            _file(folder).unlink()


_JSON = TypeAdapter(TrainingInputs)


def _file(folder: Path) -> Path:
    return folder / "training.json"
