"""Checkpoints of one training: a folder each, whole only once its marker is there."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What a checkpoint, or the end of a training, holds of an adapter in PEFT's format."""

KEPT_CHECKPOINTS = 3
"""Of an expert's training: the best, the newest, and one more while the newest is being written."""

_MARKER = "complete"
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A whole checkpoint of an expert's training; losses are nats per token, as last known at its step."""

    step: int
    folder: Path
    loss: float | None
    eval_loss: float | None


def mark_complete(checkpoint: Path) -> None:
    """Flush every file to disk, then set the marker: a crash at any moment leaves a whole checkpoint or none."""
    for path in checkpoint.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with (checkpoint / _MARKER).open("wb") as marker:
        os.fsync(marker.fileno())


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None; half-written ones are removed."""
    whole = _whole(folder)
    return whole[max(whole)] if whole else None


def trained_checkpoints(folder: Path) -> list[TrainedCheckpoint]:
    """All whole checkpoints that transformers' Trainer has left, the first step first."""
    return [_read(step, path) for step, path in sorted(_whole(folder).items())]


def keep_only_last(folder: Path) -> None:
    """Remove all but the newest whole checkpoint."""
    last = last_complete(folder)
    for path in folder.glob("checkpoint-*"):
        if path != last:
            shutil.rmtree(path, ignore_errors=True)


def _whole(folder: Path) -> dict[int, Path]:
    """By step; half-written ones are removed."""
    whole = {}
    for path in folder.glob("checkpoint-*"):
        match = _NAME.match(path.name)
        if match is None:
            continue
        if (path / _MARKER).exists():
            whole[int(match[1])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return whole


def _read(step: int, folder: Path) -> TrainedCheckpoint:
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    last: dict[str, float] = {}
    for entry in history:
        last.update({name: entry[name] for name in ("loss", "eval_loss") if name in entry})
    return TrainedCheckpoint(step, folder, last.get("loss"), last.get("eval_loss"))
