"""`tensor_trace.bin` of the llama.cpp tensor tracer: packed little-endian records, no header.

The file is made with its full length, 2 GiB, and filled from the beginning: the first record without a timestamp ends
it. Nothing in it says which version of the tracer wrote it, so what can be checked of a record is.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.shared.errors import InvalidTrace
from services.traces.choices import Phase
from services.traces.description import Finding, Severity
from services.traces.importers.ggml_operations import WITH_EXPERTS, name_of, number_of
from services.traces.importers.intake import Intake
from services.traces.importers.origin import origin
from services.traces.importers.passes import MOST_EXPERTS, NO_LAYER, OPERATION, Recording, write_passes
from services.traces.importers.source_file import Reading, SourceFile

_NO_LAYER: Final = 65_535
_MAX_SOURCES: Final = 4
_MAX_OPERATIONS: Final = 128
"""More than any build has."""

_RECORDS_AT_ONCE: Final = 16_384
_LEAST_BYTES: Final = 857
"""Where the last field of a record ends: shorter ones are of tracers that did not know experts."""

_FIELDS: Final = (
    ("timestamp_ns", "<u8", 0),
    ("token_id", "<u4", 8),
    ("layer_id", "<u2", 12),
    ("operation", "u1", 16),
    ("phase", "u1", 17),
    ("num_sources", "u1", 18),
    ("dst_name", "(128,)u1", 24),
    ("expert_ids", f"({MOST_EXPERTS},)<i4", 792),
    ("num_experts", "u1", 856),
)
"""What is read of a record: name, type, offset in bytes."""


def record_type(record_bytes: int) -> np.dtype[Any]:
    """A record of so many bytes; older tracers' end before the experts."""
    is_old = record_bytes < _LEAST_BYTES
    fields = [
        (name, "(20,)u1" if is_old and name == "dst_name" else kind, offset)
        for name, kind, offset in _FIELDS
        if offset < 128 or not is_old
    ]
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype({
        "names": list(names), "formats": list(formats), "offsets": list(offsets), "itemsize": record_bytes
    })  # fmt: skip


def detect(file: SourceFile, reading: Reading) -> bool:
    """Whether the file begins with a record, or with the zeros of a trace that holds none."""
    head = file.head(reading.options.record_bytes)
    if len(head) < reading.options.record_bytes:
        return False
    if not any(head):
        return True
    record = np.frombuffer(head, dtype=record_type(reading.options.record_bytes))
    return bool(record["timestamp_ns"][0]) and not _is_bad(record).any()


def read(files: Sequence[SourceFile], intake: Intake, reading: Reading) -> list[Finding]:
    """One sequence for each file."""
    record_bytes = reading.options.record_bytes
    if record_bytes < _LEAST_BYTES:
        raise InvalidTrace(
            f"Records of {record_bytes} bytes are of a tracer that did not record experts: there is nothing to import. "
            "Trace again with a version that writes 1,024 bytes.",
            param="options.record_bytes",
        )
    findings: list[Finding] = []
    recordings = [Recording(origin(_label(file), reading), _operations(file, reading, findings)) for file in files]
    return findings + write_passes(recordings, intake)


def _label(file: SourceFile) -> str:
    """`tensor_trace.bin` says nothing; the folder that it is in does."""
    return file.folder if file.folder and file.base_name == "tensor_trace.bin" else file.name


def _operations(file: SourceFile, reading: Reading, findings: list[Finding]) -> NDArray[Any]:
    """Those that name experts."""
    overrides = reading.options.operations
    wanted = [number_of(name, overrides) for name in WITH_EXPERTS]
    kept, others = [np.empty(0, dtype=OPERATION)], np.zeros(256, dtype=np.int64)
    for records in _records(file, reading, findings):
        named = records[(records["num_experts"] > 0) & (records["num_experts"] <= MOST_EXPERTS)]
        is_wanted = np.isin(named["operation"], wanted)
        others += np.bincount(named["operation"][~is_wanted], minlength=256)
        kept.append(_kept(named[is_wanted]))
    found = np.concatenate(kept)
    if others.any():
        findings.append(_renumbered(file, others, any_found=bool(len(found)), overrides=overrides))
    return found


def _kept(records: NDArray[Any]) -> NDArray[Any]:
    kept = np.empty(len(records), dtype=OPERATION)
    kept["token"] = records["token_id"]
    kept["layer"] = np.where(records["layer_id"] == _NO_LAYER, NO_LAYER, records["layer_id"])
    kept["name"] = [
        name_hash(name, operation)
        for name, operation in zip(
            np.ascontiguousarray(records["dst_name"]).view("S128")[:, 0].tolist(),
            records["operation"].tolist(),
            strict=True,
        )
    ]
    kept["phase"] = np.where(records["phase"] == 0, Phase.PROMPT, Phase.GENERATED)
    kept["num_experts"] = records["num_experts"]
    kept["experts"] = records["expert_ids"]
    return kept


@lru_cache(maxsize=65_536)
def name_hash(name: bytes, operation: int | str) -> int:
    """For OPERATION."""
    return int.from_bytes(hashlib.blake2b(b"%s %s" % (name, str(operation).encode()), digest_size=8).digest())


def _records(file: SourceFile, reading: Reading, findings: list[Finding]) -> Iterator[NDArray[Any]]:
    """All whole records before the first without a timestamp, some at a time: what is beyond is never read."""
    kind = record_type(reading.options.record_bytes)
    num_records, rest = divmod(file.num_bytes, kind.itemsize)
    for start in range(0, num_records, _RECORDS_AT_ONCE):
        reading.stop_if_asked()
        count = min(_RECORDS_AT_ONCE, num_records - start)
        mapped = np.memmap(file.path, dtype=kind, mode="r", offset=start * kind.itemsize, shape=(count,))
        ends = np.flatnonzero(mapped["timestamp_ns"] == 0)
        records = np.array(mapped[: ends[0]] if len(ends) else mapped)
        is_empty = not len(ends) or not any(mapped[ends[0]].tobytes())
        del mapped
        _check(file, records, start)
        if not is_empty:
            raise _no_record(file, start + len(records), kind.itemsize)
        if len(records):
            yield records
        if len(ends):
            return
    findings.append(_full(file, num_records, rest))


def _full(file: SourceFile, num_records: int, rest: int) -> Finding:
    if rest:
        what = f"ends within record {num_records:,}: it was cut off there. What is whole was read."
    else:
        what = "is full to its last record: the recording may have gone on."
    return Finding(code="truncated", severity=Severity.WARNING, message=f"{file.name} {what}")


def _check(file: SourceFile, records: NDArray[Any], start: int) -> None:
    bad = _is_bad(records)
    if bad.any():
        raise _no_record(file, start + int(np.argmax(bad)), records.dtype.itemsize)


def _no_record(file: SourceFile, number: int, record_bytes: int) -> InvalidTrace:
    return InvalidTrace(
        f"{file.name}: record {number:,} is none of {record_bytes:,} bytes. If the file is of another version of the "
        "tracer, say so with record_bytes; if it is damaged there, cut it off.",
        param="files",
    )


def _is_bad(records: NDArray[Any]) -> NDArray[np.bool_]:
    """[N] whether a record holds what the tracer cannot have written."""
    names = records["dst_name"]
    is_printable = (names >= 0x20) & (names < 0x7F)
    # A name, and zeros behind it.
    bad: NDArray[np.bool_] = (~is_printable & (names != 0)).any(axis=1) | (
        is_printable[:, 1:] > is_printable[:, :-1]
    ).any(axis=1)
    bad |= (records["phase"] > 1) | (records["num_sources"] > _MAX_SOURCES) | (records["operation"] >= _MAX_OPERATIONS)
    if "num_experts" in (records.dtype.names or ()):
        bad |= records["num_experts"] > MOST_EXPERTS
    return bad


def _renumbered(file: SourceFile, counts: NDArray[np.int64], *, any_found: bool, overrides: dict[str, int]) -> Finding:
    told = ", ".join(f"{number} ({name_of(number, overrides)})" for number in np.flatnonzero(counts).tolist()[:8])
    advice = "Name the numbers of MUL_MAT_ID and ADD_ID in `operations`: llama.cpp's builds number them anew."
    if not any_found:
        raise InvalidTrace(f"{file.name}: experts are only named by operations {told}. {advice}", param="files")
    return Finding(
        code="operation_numbers",
        severity=Severity.WARNING,
        message=f"{file.name}: operations {told} name experts too, and were left out. {advice}",
        count=int(counts.sum()),
    )
