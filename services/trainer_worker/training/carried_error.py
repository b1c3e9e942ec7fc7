"""An error of a process that trains, carried to the job's process and raised there as what it was."""

import json
import os
import traceback
from contextlib import suppress
from pathlib import Path

from services.shared import errors
from services.trainer_worker.failure_reasons import known_error
from services.trainer_worker.progress import TrainingStopped

_STOPPED = "TrainingStopped"


def forget_error(folder: Path) -> None:
    """Remove what an attempt before has left."""
    _file(folder).unlink(missing_ok=True)


def carry_error(error: BaseException, folder: Path) -> None:
    """Leave `error` in `folder`, if it has a reason that the job's owner can act on and no other process was earlier:
    the end of one breaks the connections of the others, whose errors say nothing then."""
    if isinstance(error, TrainingStopped):
        fields: dict[str, str | None] = {"type": _STOPPED}
    else:
        known = known_error(error)
        if known is None:
            return
        fields = {
            "type": type(known).__name__,
            "message": known.message,
            "param": known.param,
            "code": known.error_code,
            "traceback": "".join(traceback.format_exception(error)),
        }
    part = folder / f"error.{os.getpid()}.part"
    part.write_text(json.dumps(fields), encoding="utf-8")
    with suppress(FileExistsError):
        os.link(part, _file(folder))  # unlike a rename, it does not replace
    part.unlink()


def raise_carried_error(folder: Path) -> None:
    """Raise what `carry_error` has left in `folder`, with the traceback from there as a note; nothing left, return."""
    if not _file(folder).exists():
        return
    fields = json.loads(_file(folder).read_text(encoding="utf-8"))
    if fields["type"] == _STOPPED:
        raise TrainingStopped
    error: errors.AmoeError = getattr(errors, fields["type"])(
        fields["message"], param=fields["param"], code=fields["code"]
    )
    error.add_note(f"In a process of the training:\n{fields['traceback']}")
    raise error


def _file(folder: Path) -> Path:
    return folder / "error.json"
