"""The header of a safetensors file, read bounded and checked before any tensor is touched.

Layout (safetensors format, v1): 8 bytes little-endian header length, that many bytes of JSON, then the data;
`data_offsets` are relative to the data and must tile it without gap or overlap.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from services.shared.errors import InvalidAdapter

WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_HEADER_BYTES: Final = 4 * 1024**2
MAX_TENSORS: Final = 20_000
MAX_FILE_BYTES: Final = 8 * 1024**3
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LFS_START = b"version https://git-lfs"
_DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


class TensorEntry(NamedTuple):
    """One tensor as the header announces it; `begin` and `end` are bytes within the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@contextmanager
def open_weights(folder: Path) -> Iterator[BufferedReader]:
    """The adapter's weights file, opened once; refuses pickles, pointers and absence by name."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise _missing(folder)
    with path.open("rb") as file:
        yield file


def read_header(file: BufferedReader) -> dict[str, TensorEntry]:
    """Tensors by name; leaves `file` at the first byte of data. Raises InvalidAdapter for anything irregular."""
    num_file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(64)
    _refuse_impostor(start)
    num_header_bytes = int.from_bytes(start[:8], "little")
    if num_file_bytes < 10 or num_header_bytes > num_file_bytes - 8:
        raise _refuse(f"is truncated: it announces {num_header_bytes} bytes of header in {num_file_bytes} bytes")
    if num_header_bytes > MAX_HEADER_BYTES or num_file_bytes > MAX_FILE_BYTES:
        raise _refuse(f"is too large (header {num_header_bytes} bytes, limit {MAX_HEADER_BYTES})")
    file.seek(8)
    entries = _parse(file.read(num_header_bytes))
    _check_layout(entries, num_data_bytes=num_file_bytes - 8 - num_header_bytes)
    return entries


def _refuse_impostor(start: bytes) -> None:
    """Files that only carry the name of a safetensors file."""
    if start.startswith(_LFS_START):
        raise InvalidAdapter(
            f"{WEIGHTS_FILE} is a Git-LFS pointer, not the weights. Run `git lfs pull` and send the real file.",
            param=WEIGHTS_FILE,
        )
    if start.startswith(_PICKLE_STARTS):
        raise InvalidAdapter(
            f"{WEIGHTS_FILE} is a pickle under another name; pickles can run code and are never loaded. "
            "Save the adapter with PEFT's save_pretrained (safe_serialization=True).",
            param=WEIGHTS_FILE,
        )


def _missing(folder: Path) -> InvalidAdapter:
    """No weights file: say whether something else lies in its place."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickles = [name for name in found if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        return InvalidAdapter(
            f"The weights are in {pickles[0]!r}, a pickle, which can run code and is never loaded. "
            f"Convert it to {WEIGHTS_FILE} with PEFT's save_pretrained (safe_serialization=True).",
            param=pickles[0],
        )
    return InvalidAdapter(
        f"{WEIGHTS_FILE} is missing; found {found[:10]}. Send the folder that PEFT saves.", param=WEIGHTS_FILE
    )


def _parse(header: bytes) -> dict[str, TensorEntry]:
    """JSON to entries, believing nothing about types."""
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _refuse("has a header that is not JSON") from error
    if not isinstance(parsed, dict) or len(parsed) > MAX_TENSORS:
        raise _refuse(f"has a header that is not a map of at most {MAX_TENSORS} tensors")
    return {name: _entry(name, value) for name, value in parsed.items() if name != "__metadata__"}


def _entry(name: str, value: object) -> TensorEntry:
    """One checked header entry."""
    if not isinstance(value, dict):
        raise _refuse(f"describes tensor {name[:100]!r} wrongly")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    whole = all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    if not whole or len(offsets or ()) != 2 or dtype not in _DTYPE_BYTES or len(shape or ()) > 8:
        raise _refuse(f"describes tensor {name[:100]!r} wrongly (dtype, shape or data_offsets)")
    assert isinstance(dtype, str)
    entry = TensorEntry(dtype=dtype, shape=tuple(shape or ()), begin=numbers[-2] or 0, end=numbers[-1] or 0)
    if entry.end - entry.begin != math.prod(entry.shape) * _DTYPE_BYTES[dtype]:
        raise _refuse(f"gives tensor {name[:100]!r} {entry.end - entry.begin} bytes for {list(entry.shape)} of {dtype}")
    return entry


def _check_layout(entries: Mapping[str, TensorEntry], *, num_data_bytes: int) -> None:
    """Tensors must tile the data exactly."""
    ordered = sorted(entries.values(), key=lambda entry: (entry.begin, entry.end))
    if not ordered:
        return
    if ordered[0].begin != 0 or any(first.end != second.begin for first, second in pairwise(ordered)):
        raise _refuse("has overlapping or scattered tensors")
    if ordered[-1].end != num_data_bytes:
        raise _refuse(f"is truncated or padded: its tensors need {ordered[-1].end} bytes, it has {num_data_bytes}")


def _refuse(what: str) -> InvalidAdapter:
    """A file that is not what it says."""
    return InvalidAdapter(f"{WEIGHTS_FILE} {what}. Save or upload the adapter again.", param=WEIGHTS_FILE)
