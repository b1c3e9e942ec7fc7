"""Archives of recordings: unpacked with bounds, never by the names that they tell.

Members are written under numbers of our own, and their names are only labels. Ranges of zeros are left as holes, so
that a sparse file of 2 GiB takes what is in it.
"""

import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Final, Self

from services.shared.errors import InvalidTrace
from services.traces.description import Finding, Severity
from services.traces.importers.source_file import Reading, SourceFile

_BLOCK_BYTES: Final = 64 * 1024
_BROKEN: Final = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_TAR_MAGIC: Final = slice(257, 262)
_LONGEST_NAME: Final = 500
_HEADER_BYTES: Final = 64 * 1024


class _Header(tarfile.TarInfo):
    """tarfile reads extended headers whole, however long they say that they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header that is short enough."""
        header = super().frombuf(buf, encoding, errors)
        if header.type not in tarfile.REGULAR_TYPES and header.type != tarfile.DIRTYPE and header.size > _HEADER_BYTES:
            raise tarfile.ReadError("extended header too long")
        return header


def is_archive(file: SourceFile) -> bool:
    """Whether it is a tar, perhaps compressed."""
    head = file.head(512)
    return head.startswith(_COMPRESSED) or head[_TAR_MAGIC] == b"ustar"


def unpack(
    files: Sequence[SourceFile], folder: Path, reading: Reading, findings: list[Finding]
) -> list[SourceFile]:  # fmt: skip
    """The files, those of archives in their archive's place, unpacked into `folder`."""
    found: list[SourceFile] = []
    room = reading.limits.max_unpacked_bytes
    for file in files:
        if not is_archive(file):
            found.append(file)
            continue
        members: list[SourceFile] = []
        try:
            for member in _members(file, folder, room, reading, num_before=len(found)):
                members.append(member)
                room -= member.num_bytes
                found.append(member)
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            _cut_off(file, members, findings)
    if len(found) > reading.limits.max_files:
        raise _too_many(reading)
    return found


def _members(
    archive: SourceFile, folder: Path, room: int, reading: Reading, *, num_before: int
) -> Iterator[SourceFile]:
    with tarfile.open(archive.path, mode="r|*", tarinfo=_Header) as opened:
        for num_members, member in enumerate(opened):
            reading.stop_if_asked()
            if num_members > 2 * reading.limits.max_files:
                raise _too_many(reading)
            if member.isdir():
                continue
            _check_member(archive, member, room)
            source = opened.extractfile(member)
            assert source is not None
            target = folder / f"{num_before:06}"
            num_before += 1
            if num_before > reading.limits.max_files:
                raise _too_many(reading)
            try:
                _copy(source, target, member.size, reading)
            except BaseException:
                with suppress(FileNotFoundError):
                    target.unlink()
                raise
            room -= member.size
            yield SourceFile(_label(member.name), target)


def _check_member(archive: SourceFile, member: tarfile.TarInfo, room: int) -> None:
    name = PurePosixPath(member.name)
    if not member.isreg():
        raise InvalidTrace(
            f"{archive.name}: {member.name[:_LONGEST_NAME]!r} is a link or a device: pack plain files only.",
            param="files",
        )
    if name.is_absolute() or ".." in name.parts or "\x00" in member.name or len(member.name) > _LONGEST_NAME:
        raise InvalidTrace(
            f"{archive.name}: {member.name[:_LONGEST_NAME]!r} leads out of the archive, or is too long: pack files "
            "with relative names.",
            param="files",
        )
    if member.size > room:
        raise InvalidTrace(
            f"{archive.name} unpacks to more than the setting traces.max_unpacked_bytes allows, at "
            f"{member.name[:_LONGEST_NAME]!r}: import its parts singly.",
            param="files",
        )


def _copy(source: IO[bytes], target: Path, num_bytes: int, reading: Reading) -> None:
    left = num_bytes
    with target.open("wb") as file:
        while left:
            block = source.read(min(_BLOCK_BYTES, left))
            if not block:
                raise EOFError
            if block.count(0) == len(block):
                file.seek(len(block), 1)
            else:
                file.write(block)
            left -= len(block)
            reading.stop_if_asked()
        file.truncate(num_bytes)


def _label(name: str) -> str:
    return str(PurePosixPath(name))


def _cut_off(archive: SourceFile, members: Sequence[SourceFile], findings: list[Finding]) -> None:
    if not members:
        raise InvalidTrace(
            f"{archive.name} is no archive that can be read, or is cut off within its first file: pack it again, with "
            "tar.",
            param="files",
        ) from None
    findings.append(
        Finding(
            code="truncated",
            severity=Severity.WARNING,
            message=f"{archive.name} is cut off or damaged behind {members[-1].name!r}: the {len(members)} files that "
            "are whole were read.",
        )
    )


def _too_many(reading: Reading) -> InvalidTrace:
    return InvalidTrace(
        f"There are more than {reading.limits.max_files:,} files: import fewer at once, or raise the setting "
        "traces.max_files.",
        param="files",
    )
