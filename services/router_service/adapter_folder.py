"""Adapters in a folder of the operator's: reached by a path below it, never through a link."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from services.router_service.expert_import import CONFIG_FILE, WEIGHTS_FILE, UploadedFile
from services.shared.errors import InvalidRequest, NotFound

_LONGEST_SHOWN: Final = 120
_A_LINK: Final = frozenset({errno.ELOOP, errno.EMLINK})
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES})


@contextmanager
def open_adapter(root: Path, path: str) -> Iterator[list[UploadedFile]]:
    """The two files of the PEFT adapter in folder `path`, relative to `root` or absolute below it.

    Every step is opened from the one before without following links, so nothing can be swapped in between. Raises
    InvalidRequest for paths that lead elsewhere, NotFound where no adapter is.
    """
    with ExitStack() as opened:
        try:
            folder = _open_folder(root, opened)
            for part in _parts(root, path):
                folder = _open(part, folder, opened, os.O_DIRECTORY)
            files = [_open_file(name, folder, opened) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        except OSError as error:
            raise _explained(error, path) from error
        yield files


def _parts(root: Path, path: str) -> tuple[str, ...]:
    """The names on the way from `root`."""
    given = PurePosixPath(path)
    absolute = os.path.abspath(root)
    is_below = not given.is_absolute() or given.is_relative_to(absolute)
    parts = given.relative_to(absolute).parts if given.is_absolute() and is_below else given.parts
    if not is_below or not parts or ".." in parts or "\x00" in path or "\\" in path:
        raise _forbidden(path)
    return parts


def _open_folder(root: Path, opened: ExitStack) -> int:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    opened.callback(os.close, folder)
    return folder


def _open(name: str, folder: int, opened: ExitStack, flags: int) -> int:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, dir_fd=folder)
    opened.callback(os.close, descriptor)
    return descriptor


def _open_file(name: str, folder: int, opened: ExitStack) -> UploadedFile:
    descriptor = _open(name, folder, opened, 0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", name)
    return UploadedFile(filename=name, content=opened.enter_context(os.fdopen(os.dup(descriptor), "rb")))


def _explained(error: OSError, path: str) -> Exception:
    if error.errno in _A_LINK:
        return _forbidden(path)
    if error.errno in _NOT_THERE:
        return NotFound(
            f"No adapter at {path[:_LONGEST_SHOWN]!r}: a folder with {CONFIG_FILE} and {WEIGHTS_FILE} is expected "
            "there, without links.",
            param="lora_path",
            code="adapter_path_not_found",
        )
    return error


def _forbidden(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path[:_LONGEST_SHOWN]!r} does not stay below adapter_folder: give a path inside it, without links.",
        param="lora_path",
        code="adapter_path_forbidden",
    )
