"""Folders of recordings as one archive, which is what is sent of them."""

import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.command_line.errors import BadInput

_LARGE_BYTES: Final = 64 * 1024**2
"""Files of llama.cpp's tracer are made with 2 GiB and hold mostly zeros, which need not go over the wire."""


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
                    opened.add(path, arcname=path.resolve().name, filter=_plain)
        except OSError as error:
            raise BadInput(f"{error.filename or archive} cannot be packed: {error.strerror}.") from error
        yield [archive]


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files and folders, without whose they are."""
    if not (member.isreg() or member.isdir()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
