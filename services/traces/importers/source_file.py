"""A file to be imported: its name, its bytes, and JSON out of it with bounds."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from services.shared.config import TraceSettings
from services.shared.errors import InvalidTrace
from services.shared.schemas.trace_import import ImportOptions

_HEAD_BYTES: Final = 64 * 1024
_LONGEST_REASON: Final = 200
_NAMED_AT_MOST: Final = 5
_MOST_EXPERTS: Final = 256
_HIGHEST_WEIGHT: Final = 1e30
_INTEGER: Final = frozenset({int})
_NUMBER: Final = frozenset({int, float})
IMPOSSIBLE: Final = 2**31 - 1


@dataclass(frozen=True)
class Reading:
    """How files are read: what their owner says of them, how much is accepted, and whether to go on at all."""

    options: ImportOptions
    limits: TraceSettings
    stop_if_asked: Callable[[], None]
    """Raises when the job should stop; called every now and then."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """By folder, where the files themselves say so."""


@dataclass(frozen=True)
class SourceFile:
    """`name` is relative to the upload or to the archive, with `/`; nothing is ever opened by it."""

    name: str
    path: Path

    @property
    def num_bytes(self) -> int:
        """Its length."""
        return self.path.stat().st_size

    @property
    def folder(self) -> str:
        """Its folder's name within the archive, "" at the top."""
        return str(PurePosixPath(self.name).parent).removeprefix(".")

    @property
    def base_name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self.name).name

    def head(self, num_bytes: int = _HEAD_BYTES) -> bytes:
        """Its beginning."""
        with self.path.open("rb") as file:
            return file.read(num_bytes)

    def text(self, max_bytes: int) -> str:
        """All of it, as UTF-8; what is cut within a character loses that character."""
        if self.num_bytes > max_bytes:
            raise InvalidTrace(
                f"{self.name} is larger than the {max_bytes:,} bytes that a JSON file may have: split it, or raise the "
                "setting traces.max_json_bytes.",
                param="files",
            )
        return self.path.read_bytes().decode("utf-8", errors="replace")

    def lines(self, max_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and bytes of each line that is not blank."""
        with self.path.open("rb") as file:
            for number in range(1, 2**62):
                line = file.readline(max_bytes + 1)
                if not line:
                    return
                if len(line) > max_bytes:
                    raise InvalidTrace(
                        f"{self.name}: line {number} is longer than {max_bytes:,} bytes: this is no file of JSON "
                        "lines, or raise the setting traces.max_line_bytes.",
                        param="files",
                    )
                if line.strip():
                    yield number, line


def named(names: Sequence[str]) -> str:
    """Some of them, for a message."""
    told = ", ".join(name[:100] for name in names[:_NAMED_AT_MOST])
    return f"{told} and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else told


def parse(text: str | bytes, where: str) -> Any:
    """The JSON value. Raises InvalidTrace for what is none, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidTrace(f"{where} is nested too deeply.", param="files") from None
    except ValueError as error:
        raise InvalidTrace(f"{where} is not JSON ({str(error)[:_LONGEST_REASON]}).", param="files") from None


def expert_numbers(value: Any, where: str, field: str) -> list[int]:
    """A list of whole numbers; IMPOSSIBLE for those that no expert can have, which are left out later. Raises
    InvalidTrace for anything else, and for more than 256."""
    if not isinstance(value, list) or len(value) > _MOST_EXPERTS or not _INTEGER.issuperset(map(type, value)):
        raise InvalidTrace(
            f"{where}: {field} is not a list of at most {_MOST_EXPERTS} whole numbers.", param="files"
        )  # fmt: skip
    if value and (min(value) < 0 or max(value) > IMPOSSIBLE):
        return [item if 0 <= item < IMPOSSIBLE else IMPOSSIBLE for item in value]
    return value


def weights_of(value: Any, experts: list[int], where: str, field: str) -> list[float]:
    """A list of as many numbers; NaN for what no weight can be. Raises InvalidTrace for anything else."""
    if not isinstance(value, list) or not _NUMBER.issuperset(map(type, value)):
        raise InvalidTrace(f"{where}: {field} is not a list of numbers.", param="files")
    if len(value) != len(experts):
        raise InvalidTrace(f"{where}: {len(value)} {field} for {len(experts)} experts.", param="files")
    if all(-_HIGHEST_WEIGHT < item < _HIGHEST_WEIGHT for item in value):
        return value
    return [float(item) if abs(item) < _HIGHEST_WEIGHT else math.nan for item in value]


def integer(value: Any, where: str, field: str, *, below: int = 2**31) -> int:
    """A whole number from 0 to below a bound. Raises InvalidTrace."""
    if type(value) is not int or not 0 <= value < below:
        raise InvalidTrace(f"{where}: {field} is not a whole number from 0 to {below - 1:,}.", param="files")
    return value
