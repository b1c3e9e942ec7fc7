"""Uploaded bytes onto disk: in pieces, with a limit, whole or not at all."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from services.shared.errors import OutOfRoom, PayloadTooLarge

_CHUNK_BYTES: Final = 1024 * 1024
_LONGEST_NAME: Final = 200
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Source(Protocol):
    """What is read like a file."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    num_bytes: int
    sha256: str


def write_upload(source: Source, target: Path, *, max_bytes: int, what: str) -> Written:
    """Copy `source` to `target`, which appears only when all is there; blocking, so call it in a thread.

    Raises PayloadTooLarge, or OutOfRoom when the disk is full; nothing is left behind then.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        with room_on_disk():
            written = _copy(source, part, max_bytes=max_bytes, what=what)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return written


@contextmanager
def room_on_disk() -> Iterator[None]:
    """Turns a full disk into OutOfRoom."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfRoom("The disk is full: delete files or experts that are not needed, then try again.") from error
        raise


def safe_filename(given: str | None) -> str:
    """A client's file name for display: its last part, without control characters."""
    last = (given or "").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[\x00-\x1f\x7f]", "", last)[:_LONGEST_NAME] or "upload"


def safe_path(given: str | None) -> str:
    """The same with the folders before it, where they are not too long; it leads nowhere, and is never opened."""
    steps = (given or "").replace("\\", "/").split("/")
    whole = "/".join(safe_filename(step) for step in steps if step.strip() not in {"", ".", ".."})
    return whole if whole and len(whole) <= _LONGEST_NAME else safe_filename(given)


def _copy(source: Source, part: Path, *, max_bytes: int, what: str) -> Written:
    digest = hashlib.sha256()
    num_bytes = 0
    with part.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise PayloadTooLarge(f"{what} is larger than the {max_bytes:,} bytes accepted.", param="file")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(num_bytes, digest.hexdigest())
