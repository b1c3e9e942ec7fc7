"""Uploaded files as records: JSON lines, CSV, Parquet. Read a piece at a time, so that a bad file costs no memory.

A record is an object by column; a column without a value in a record is left out of it. Every complaint names the line,
or the row, that was read last.
"""

import codecs
import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from services.shared.errors import InvalidDataset

MAX_LINE_BYTES: Final = 4 * 1024**2
"""Of a line, and of a record however many lines it has."""
MAX_TEXT_BYTES: Final = 2 * 1024**3
"""Of what a compressed file holds; others are bounded by what may be uploaded."""

_LFS_POINTER: Final = "version https://git-lfs"
_PARQUET_MAGIC: Final = b"PAR1"
_JSON_SUFFIXES: Final = frozenset({".jsonl", ".json", ".ndjson"})
_CSV_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_PARQUET_SUFFIXES: Final = frozenset({".parquet", ".pq"})
_TEXT_SUFFIXES: Final = frozenset({".txt", ".md"})
SUFFIXES: Final = _JSON_SUFFIXES | _CSV_DELIMITERS.keys() | _PARQUET_SUFFIXES | _TEXT_SUFFIXES
"""Endings that say how a file is read."""
_BATCH_BYTES: Final = 256 * 1024**2
_MAX_GROUP_BYTES: Final = 1024**3
_MAX_BATCH_ROWS: Final = 256


class RecordFile(Protocol):
    """A file of records."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each in turn; raises InvalidDataset at the first that cannot be read."""

    def complaint(self, reason: str) -> InvalidDataset:
        """The error for the record read last."""


def open_records(path: Path, *, filename: str, columns: Collection[str], forms: str) -> RecordFile | None:
    """The file's records by its name's ending, of other names by its first bytes; None for plain text.

    `columns` are those that anybody asks for, `forms` says in complaints what a record may look like.
    """
    suffix = Path(filename).suffix.lower()
    with path.open("rb") as file:
        start = file.read(1024)
    known = suffix in SUFFIXES
    if suffix in _CSV_DELIMITERS:
        return CsvRecords(TextLines(path, filename), delimiter=_CSV_DELIMITERS[suffix], forms=forms)
    if suffix in _PARQUET_SUFFIXES or (not known and start.startswith(_PARQUET_MAGIC)):
        return ParquetRecords(path, filename, columns=columns, forms=forms)
    starts_with_object = start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
    if suffix in _JSON_SUFFIXES or (not known and starts_with_object):
        return JsonRecords(TextLines(path, filename), forms=forms)
    return None


class TextLines:
    """A file's lines with numbers from 1, decoded; complaints about the one read last."""

    def __init__(self, path: Path, filename: str) -> None:
        self._path = path
        self._filename = filename
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                self.number += 1
                yield self._decoded(raw)

    def complaint(self, reason: str, *, number: int | None = None) -> InvalidDataset:
        """The error for the line read last, or for another."""
        where = f"{self._filename} line {number or self.number or 1}"
        return InvalidDataset(f"{where}: {reason}", param="training_file")

    def _decoded(self, raw: bytes) -> str:
        if len(raw) > MAX_LINE_BYTES:
            raise self.complaint(f"longer than {MAX_LINE_BYTES:,} bytes; cut it into several.")
        if self.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise self.complaint(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8 text.") from None
        if self.number == 1 and line.startswith(_LFS_POINTER):
            raise self.complaint("this is a Git-LFS pointer, not the file; run `git lfs pull` and upload again.")
        return line


class JsonRecords:
    """One JSON object a line; empty lines are passed over."""

    def __init__(self, lines: TextLines, *, forms: str) -> None:
        self._lines = lines
        self._forms = forms
        self.complaint = lines.complaint

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            if line.strip():
                yield self._read(line)

    def _read(self, line: str) -> dict[str, Any]:
        like = f"each line must be one object like {self._forms}."
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise self.complaint(f"not JSON ({_reason(error)}); {like}") from None
        except RecursionError:
            raise self.complaint(f"nested too deeply; {like}") from None
        if not isinstance(fields, dict):
            raise self.complaint(f"a {type(fields).__name__}, not an object like {self._forms}.")
        return fields


class CsvRecords:
    """CSV with a header (RFC 4180: cells in quotes may hold line breaks). A record's line is its first one.

    The cells of a column `messages` hold JSON.
    """

    def __init__(self, lines: TextLines, *, delimiter: str, forms: str) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._forms = forms
        self._start = 1
        self._num_bytes = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Process-wide in the csv module; lines are bounded before they get there.
        csv.field_size_limit(MAX_LINE_BYTES)
        rows = self._rows(csv.reader(self._bounded(), delimiter=self._delimiter, strict=True))
        header = next(rows, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise self.complaint("the header names a column twice.")
        for cells in rows:
            if len(cells) != len(header):
                raise self.complaint(
                    f"has {len(cells)} cells where the header has {len(header)}; quote cells that hold commas."
                )
            yield self._read(dict(zip(header, cells, strict=True)))

    def complaint(self, reason: str) -> InvalidDataset:
        """The error for the record read last."""
        return self._lines.complaint(reason, number=self._start)

    def _rows(self, reader: Iterator[list[str]]) -> Iterator[list[str]]:
        """Rows with cells, each with its first line noted."""
        while True:
            self._start, self._num_bytes = self._lines.number + 1, 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self.complaint(f"not CSV ({error}); quote cells that hold quotes or line breaks.") from None
            if cells:
                yield cells

    def _bounded(self) -> Iterator[str]:
        for line in self._lines:
            self._num_bytes += len(line.encode())
            if self._num_bytes > MAX_LINE_BYTES:
                raise self.complaint(f"a record longer than {MAX_LINE_BYTES:,} bytes; is a closing quote missing?")
            yield line

    def _read(self, fields: dict[str, Any]) -> dict[str, Any]:
        if "messages" in fields:
            try:
                fields["messages"] = json.loads(fields["messages"])
            except (ValueError, RecursionError):
                raise self.complaint("'messages' must be a JSON list of messages.") from None
        return fields


class ParquetRecords:
    """Parquet, a few rows at a time. Rows are counted from 1; nulls are columns without a value."""

    def __init__(self, path: Path, filename: str, *, columns: Collection[str], forms: str) -> None:
        self._path = path
        self._filename = filename
        self._columns = columns
        self._forms = forms
        self._number = 0
        self._num_bytes = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(
                self._path, pre_buffer=False, buffer_size=1024**2, arrow_extensions_enabled=False
            ) as file:
                columns = self._wanted(file.schema_arrow.names)
                for group in range(file.num_row_groups):
                    num_rows = self._batch_rows(file.metadata.row_group(group), columns)
                    for batch in file.iter_batches(num_rows, row_groups=[group], columns=columns, use_threads=False):
                        yield from map(self._read, batch.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from None

    def complaint(self, reason: str) -> InvalidDataset:
        """The error for the row read last."""
        return InvalidDataset(f"{self._filename} row {self._number}: {reason}", param="training_file")

    def _wanted(self, names: list[str]) -> list[str]:
        wanted = [name for name in names if name in self._columns]
        if not wanted:
            shown = ", ".join(repr(name[:40]) for name in names[:6]) or "none"
            raise InvalidDataset(
                f"{self._filename} has the columns {shown}, but they must be of {self._forms}.", param="training_file"
            )
        return wanted

    def _batch_rows(self, group: Any, columns: list[str]) -> int:
        """As many rows as surely fit into memory: one may be as large as all of its group."""
        chunks = (group.column(index) for index in range(group.num_columns))
        num_bytes: int = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
        )
        self._num_bytes += num_bytes
        if num_bytes > _MAX_GROUP_BYTES or self._num_bytes > MAX_TEXT_BYTES:
            raise InvalidDataset(
                f"{self._filename} holds too much to be read: {_MAX_GROUP_BYTES:,} bytes of text in one row group and "
                f"{MAX_TEXT_BYTES:,} in all are accepted. Write smaller row groups, or several files.",
                param="training_file",
            )
        return min(_MAX_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, num_bytes)))

    def _read(self, row: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        fields = {name: value for name, value in row.items() if value is not None}
        if sum(len(value) for value in fields.values() if isinstance(value, str)) > MAX_LINE_BYTES:
            raise self.complaint(f"longer than {MAX_LINE_BYTES:,} characters; cut it into several.")
        return fields

    def _broken(self, error: Exception) -> InvalidDataset:
        where = f" after row {self._number}" if self._number else ""
        reason = " ".join(str(error).split())[:120]
        return InvalidDataset(
            f"{self._filename} cannot be read as Parquet{where} ({reason}): write it again and upload that.",
            param="training_file",
        )


def _reason(error: ValueError) -> str:
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]
