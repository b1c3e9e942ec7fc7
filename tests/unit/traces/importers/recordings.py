"""Recordings as their tracers write them, made field by field, and imported."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.shared.config import TraceSettings
from services.shared.errors import InvalidTrace
from services.shared.schemas.trace_import import ImportOptions
from services.traces.importers.importing import import_trace
from services.traces.importers.source_file import Reading, SourceFile
from services.traces.table import Trace

MUL_MAT, MUL_MAT_ID, ADD_ID = 29, 30, 3
PROMPT, GENERATE = 0, 1
OPERATIONS = {"ffn_moe_gate": MUL_MAT_ID, "ffn_moe_up": MUL_MAT_ID, "ffn_moe_down": MUL_MAT_ID, "biased": ADD_ID}


def record(
    token: int,
    layer: int,
    experts: Sequence[int] = (),
    *,
    operation: int = MUL_MAT_ID,
    name: str = "ffn_moe_gate",
    phase: int = GENERATE,
    timestamp: int = 600604883848933,
) -> bytes:
    """One record of 1,024 bytes, packed as the tracer's header says."""
    head = struct.pack("<QIHHBBB5s", timestamp, token, layer, 77, operation, phase, 3, bytes(5))
    source = struct.pack("<128sQIHBBQI4s", b"blk.0.ffn_gate_exps.weight", 1, 2, layer, 1, 0, 9, 0xFFFFFFFF, bytes(4))
    ids = list(experts) + [0] * (16 - len(experts))
    tail = struct.pack("<16iB", *ids, len(experts))
    packed = head + f"{name}-{layer}".encode().ljust(128, b"\0") + 4 * source + tail + bytes(167)
    assert len(packed) == 1024
    return packed


def model_pass(token: int, selections: Sequence[Sequence[int]], *, phase: int = GENERATE) -> list[bytes]:
    """All records of one pass: four operations of a layer share its selection, and some name no experts at all."""
    records = []
    for layer, experts in enumerate(selections):
        records.append(record(token, layer, operation=MUL_MAT, name="ffn_norm", phase=phase))
        for name, operation in OPERATIONS.items():
            records.append(record(token, layer, experts, operation=operation, name=name, phase=phase))
    return records


def token_json(token: int, passes: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> dict[str, Any]:
    """What the parser makes of the passes (phase, experts by layer) of one token."""
    names = {MUL_MAT_ID: "MUL_MAT_ID", ADD_ID: "ADD_ID"}
    entries = [
        {
            "entry_id": 0,
            "timestamp_ns": 5,
            "timestamp_relative_ms": 0.001,
            "token_id": token,
            "layer_id": layer,
            "thread_id": 7,
            "phase": phase,
            "operation_type": names[operation],
            "dst_name": f"{name}-{layer}",
            "num_sources": 1,
            "sources": [],
            "expert_ids": list(experts),
            "num_experts": len(experts),
        }
        for phase, selections in passes
        for layer, experts in enumerate(selections)
        for name, operation in OPERATIONS.items()
    ]
    entries.insert(0, {"token_id": token, "layer_id": None, "operation_type": "GET_ROWS", "expert_ids": []})
    metadata = {
        "total_entries": len(entries),
        "duration_ms": 1.0,
        "timestamp_start_ns": 5,
        "format_version": "1024-byte",
    }
    return {"token_id": token, "metadata": metadata, "entries": entries}


def routes(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def route(request: str, position: int, experts: Sequence[int], *, layer: int = 0, **more: Any) -> dict[str, Any]:
    """A line of moe_routes.jsonl."""
    weights = [1 / 2**rank for rank in range(1, len(experts) + 1)]
    line = {"type": "route", "req_id": request, "token_idx": position, "layer": layer, "topk_ids": list(experts)}
    return {**line, "topk_weights": weights, **more}


def imported(
    tmp_path: Path,
    files: Mapping[str, bytes],
    *,
    limits: TraceSettings | None = None,
    **options: Any,
) -> Trace:
    """The trace of files by name."""
    number = len(list(tmp_path.iterdir()))
    uploads, folder, scratch = (tmp_path / f"{number}-{name}" for name in ("uploads", "trace", "scratch"))
    for made in (uploads, folder, scratch):
        made.mkdir()
    sources = []
    for index, (name, content) in enumerate(files.items()):
        (uploads / str(index)).write_bytes(content)
        sources.append(SourceFile(name, uploads / str(index)))
    reading = Reading(ImportOptions(**options), limits or TraceSettings(), stop_if_asked=lambda: None)
    import_trace(sources, folder, scratch=scratch, reading=reading)
    return Trace(folder)


def codes(trace: Trace) -> set[str]:
    """Of its findings."""
    return {finding.code for finding in trace.description.findings}


def finding(trace: Trace, code: str) -> Any:
    """The one of that code."""
    (found,) = [each for each in trace.description.findings if each.code == code]
    return found


def read_or_refused(folder: Path, files: Mapping[str, bytes]) -> Trace | None:
    """The trace of files that may be damaged, which has tokens; None if they are refused. Nothing else may happen."""
    try:
        trace = imported(folder, files)
    except InvalidTrace as error:
        return None if error.message else pytest.fail("refused without a reason")
    assert trace.description.num_tokens >= 1
    return trace
