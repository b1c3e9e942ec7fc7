"""Allocation events beside a trace: who is in use when, and how much that is."""

import json
from pathlib import Path

import pytest

from services.shared.errors import InvalidTrace
from services.traces.importers.buffer_timeline import BUFFERS, AllBuffers
from tests.unit.traces.importers.recordings import finding, imported, route, routes

MIB = 1024**2
EVENTS = [
    {"timestamp_ms": 1.0, "event": "alloc", "buffer_id": 1, "buffer_ptr": "0x1", "size": 2 * MIB, "name": "weights",
     "backend": "CPU", "usage": 1, "layer": 65535},
    {"timestamp_ms": 2.0, "event": "alloc", "buffer_id": 2, "size": MIB, "name": "kv", "backend": "CPU", "usage": 0,
     "layer": 3},
    {"timestamp_ms": 3.5, "event": "dealloc", "buffer_id": 2},
    {"timestamp_ms": 4.5, "event": "alloc", "buffer_id": 2, "size": 512, "name": "work", "backend": "CPU", "usage": 2},
]  # fmt: skip
CHOICES = {"domain-1-code/moe_routes.jsonl": routes([route("r", 0, [1, 2]), route("r", 1, [3, 4])])}


def timeline(tmp_path: Path, content: bytes) -> AllBuffers:
    trace = imported(tmp_path, {**CHOICES, "domain-1-code/buffer_stats.jsonl": content})
    return AllBuffers.model_validate_json((trace.folder / BUFFERS).read_text())


class TestReadBuffers:
    def test_the_timeline_is_that_of_the_events(self, tmp_path: Path) -> None:
        (run,) = timeline(tmp_path, routes(EVENTS)).runs
        buffers = run.buffers

        assert (run.domain, run.prompt) == ("code", "domain-1-code")
        assert buffers.metadata.model_dump() == {
            "total_events": 4,
            "total_buffers": 3,
            "peak_occupancy_bytes": 3 * MIB,
            "peak_occupancy_mb": 3.0,
            "duration_ms": 3.5,
            "usage_breakdown": {"ANY": 1, "WEIGHTS": 1, "COMPUTE": 1},
        }
        assert [(each.name, each.alloc_time_ms, each.dealloc_time_ms, each.layer) for each in buffers.buffers] == [
            ("weights", 1.0, None, None),
            ("kv", 2.0, 3.5, 3),
            ("work", 4.5, None, None),
        ]
        assert [(each.event, each.cumulative_size, each.num_active_buffers) for each in buffers.timeline] == [
            ("alloc", 2 * MIB, 1),
            ("alloc", 3 * MIB, 2),
            ("dealloc", 2 * MIB, 1),
            ("alloc", 2 * MIB + 512, 2),
        ]
        assert buffers.timeline[2].buffer_name == "kv"

    def test_events_that_cannot_be_are_told(self, tmp_path: Path) -> None:
        strange = [*EVENTS, EVENTS[0], {"timestamp_ms": 9, "event": "dealloc", "buffer_id": 77}]
        trace = imported(tmp_path, {**CHOICES, "buffer_stats.jsonl": routes(strange)})

        assert finding(trace, "buffer_events").count == 2

    def test_a_cut_line_is_left_out_and_a_bad_one_refused(self, tmp_path: Path) -> None:
        assert timeline(tmp_path, routes(EVENTS)[:-20]).runs[0].buffers.metadata.total_events == 3
        bad = routes(EVENTS) + json.dumps({"timestamp_ms": 1, "event": "move", "buffer_id": 1}).encode() + b"\n"
        with pytest.raises(InvalidTrace, match="line 5: event is neither"):
            timeline(tmp_path, bad)

    def test_events_alone_are_no_trace(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidTrace, match="No choices of experts"):
            imported(tmp_path, {"buffer_stats.jsonl": routes(EVENTS)})
