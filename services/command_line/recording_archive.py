"""Folders of recordings as one archive, which is what is sent of them."""

import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.command_line.errors import BadInput

_LARGE_BYTES: Final = 64 * 1024**2
"""Files of llama.cpp's tracer are made with 2 GiB and hold mostly zeros, which need not go over the wire."""


_KEPT_ZEROS: Final = 1024**2


@contextmanager
def packed(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The files as they are, or, where there are folders or large files, one archive of all that is in them."""
    for path in paths:
        if not path.exists():
            raise BadInput(f"{path} is not there.")
    if all(path.is_file() and path.stat().st_size < _LARGE_BYTES for path in paths):
        yield list(paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "recordings.tar.gz"
        try:
            with tarfile.open(archive, "w:gz", compresslevel=1) as opened:
                for path in paths:
                    for file in _files(path):
                        _add(opened, file, name=str(file.relative_to(path.resolve().parent)))
        except OSError as error:
            raise BadInput(f"{error.filename or archive} cannot be packed: {error.strerror}.") from error
        yield [archive]


def _files(path: Path) -> Iterator[Path]:
    """The file, or those in the folder; no links."""
    whole = path.resolve()
    found = [whole] if whole.is_file() else sorted(whole.rglob("*"))
    yield from (file for file in found if file.is_file() and not file.is_symlink())


def _add(archive: tarfile.TarFile, file: Path, *, name: str) -> None:
    member = tarfile.TarInfo(name)
    with file.open("rb") as opened:
        member.size = _bytes_with_data(opened.fileno(), file.stat().st_size)
        archive.addfile(member, opened)


def _bytes_with_data(descriptor: int, num_bytes: int) -> int:
    """Up to the hole that a sparse file ends with, and a little of that: the tracer's readers look for zeros there."""
    end = 0
    while hasattr(os, "SEEK_DATA"):
        try:
            end = os.lseek(descriptor, os.lseek(descriptor, end, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError:
            os.lseek(descriptor, 0, os.SEEK_SET)
            return min(num_bytes, end + _KEPT_ZEROS)
    return num_bytes
