"""Files of pictures in the layouts that CIFAR-10 comes in: told apart by their first bytes, and counted unread."""

import pickletools
from pathlib import Path
from typing import Final

PARQUET: Final = b"PAR1"
PICKLE: Final = b"\x80"
PICTURE_BYTES: Final = 3 * 32**2
RECORD_BYTES: Final = 1 + PICTURE_BYTES
"""Of a binary batch: a label and the pixels, plane by plane."""


def num_pictures(path: Path) -> int | None:
    """How many pictures a file holds, without decoding one; None for a file that holds none that can be counted."""
    with path.open("rb") as file:
        start = file.read(len(PARQUET))
    if start == PARQUET:
        return _num_rows(path)
    if start[: len(PICKLE)] == PICKLE:
        return _num_in_pickle(path)
    return path.stat().st_size // RECORD_BYTES or None


def _num_rows(path: Path) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows) or None
    except (pa.ArrowException, OSError):
        return None


def _num_in_pickle(path: Path) -> int | None:
    """By its longest string, which is all pixels. The pickle is taken apart, and nothing that it says is done."""
    longest = 0
    try:
        with path.open("rb") as file:
            for _, argument, _ in pickletools.genops(file):
                if isinstance(argument, str | bytes | bytearray):
                    longest = max(longest, len(argument))
    except (ValueError, OverflowError, MemoryError):  # what a damaged one makes it raise
        return None
    return longest // PICTURE_BYTES or None
