"""Checkpoints of one training: a folder each, whole only once its marker is there."""

import os
import re
import shutil
from pathlib import Path

_MARKER = "complete"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def mark_complete(checkpoint: Path) -> None:
    """Flush every file to disk, then set the marker: a crash at any moment leaves a whole checkpoint or none."""
    for path in checkpoint.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with (checkpoint / _MARKER).open("wb") as marker:
        os.fsync(marker.fileno())


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None; half-written ones are removed."""
    newest: tuple[int, Path] | None = None
    for path in folder.glob("checkpoint-*"):
        match = _NAME.match(path.name)
        if match is None:
            continue
        if not (path / _MARKER).exists():
            shutil.rmtree(path, ignore_errors=True)
        elif newest is None or int(match[1]) > newest[0]:
            newest = (int(match[1]), path)
    return newest[1] if newest else None


def keep_only_last(folder: Path) -> None:
    """Remove all but the newest whole checkpoint."""
    last = last_complete(folder)
    for path in folder.glob("checkpoint-*"):
        if path != last:
            shutil.rmtree(path, ignore_errors=True)
