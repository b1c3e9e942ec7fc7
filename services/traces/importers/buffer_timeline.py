"""`buffer-timeline.json` out of the tracer's allocation events, a JSON line for each.

    {"timestamp_ms": 1.5, "event": "alloc", "buffer_id": 7, "size": 4096, "name": ..., "backend": ..., "usage": 1, ...}
    {"timestamp_ms": 9.0, "event": "dealloc", "buffer_id": 7}

They say nothing of experts, so they come with a trace and are kept beside it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.shared.errors import InvalidTrace
from services.traces.description import Finding, Severity
from services.traces.importers.origin import origin
from services.traces.importers.source_file import Reading, SourceFile, integer, parse

BUFFERS: Final = "buffers.json"
"""In the trace's folder."""

_USAGES: Final = ("ANY", "WEIGHTS", "COMPUTE")
_MAX_EVENTS: Final = 200_000
_MIB: Final = 1024**2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class BufferSummary(_Frozen):
    """Of all buffers."""

    total_events: int
    total_buffers: int
    peak_occupancy_bytes: int
    peak_occupancy_mb: float
    duration_ms: float
    usage_breakdown: dict[str, int] = Field(description="Buffers by what they are for.")


class Buffer(_Frozen):
    """A piece of memory that was allocated."""

    id: int
    name: str
    size: int
    backend: str
    usage: int
    usage_name: str
    layer: int | None
    alloc_time_ms: float
    dealloc_time_ms: float | None


class BufferEvent(_Frozen):
    """What happened to one, and how much is in use then."""

    timestamp_ms: float
    event: Literal["alloc", "dealloc"]
    buffer_id: int
    buffer_name: str
    size: int
    cumulative_size: int
    num_active_buffers: int


class BufferTimeline(_Frozen):
    """`buffer-timeline.json`."""

    metadata: BufferSummary
    buffers: tuple[Buffer, ...] = Field(description="By time of allocation.")
    timeline: tuple[BufferEvent, ...]


class TracedBuffers(_Frozen):
    """Of one prompt's run."""

    domain: str
    prompt: str
    buffers: BufferTimeline


class AllBuffers(_Frozen):
    """BUFFERS."""

    runs: tuple[TracedBuffers, ...]


def detect(file: SourceFile, reading: Reading) -> bool:
    """Whether its first line is such an event."""
    first = file.head().lstrip().split(b"\n", 1)[0]
    return first[:1] == b"{" and b'"event"' in first and b'"buffer_id"' in first and b"alloc" in first


def read_buffers(file: SourceFile, reading: Reading, findings: list[Finding]) -> TracedBuffers:
    """The timeline of one file. Raises InvalidTrace naming the line."""
    timeline = _Timeline()
    num_strange = 0
    for event, where in _events(file, reading, findings):
        num_strange += not timeline.add(event, where)
    if num_strange:
        findings.append(
            Finding(
                code="buffer_events",
                severity=Severity.WARNING,
                message=f"{file.name}: buffers were freed that are not in use, or allocated twice: those events were "
                "left out. The tracer may have lost some.",
                count=num_strange,
            )
        )
    whence = origin(file.folder or file.name, reading)
    return TracedBuffers(domain=whence.domain, prompt=whence.prompt, buffers=timeline.whole())


@dataclass
class _Timeline:
    active: dict[int, int] = field(default_factory=dict)
    """By buffer id, the place of the buffer that has it now."""
    buffers: list[dict[str, Any]] = field(default_factory=list)
    events: list[BufferEvent] = field(default_factory=list)
    in_use: int = 0
    peak: int = 0

    def add(self, event: dict[str, Any], where: str) -> bool:
        """False for one that cannot be."""
        buffer_id = integer(event.get("buffer_id"), where, "buffer_id", below=2**63)
        moment = _moment(event.get("timestamp_ms"), where)
        kind: Literal["alloc", "dealloc"]
        if event.get("event") == "alloc":
            kind = "alloc"
            if buffer_id in self.active:
                return False
            self.active[buffer_id] = len(self.buffers)
            self.buffers.append(_allocated(event, buffer_id, moment, where))
            buffer = self.buffers[-1]
            self.in_use += buffer["size"]
        elif event.get("event") == "dealloc":
            kind = "dealloc"
            if buffer_id not in self.active:
                return False
            buffer = self.buffers[self.active.pop(buffer_id)]
            buffer["dealloc_time_ms"] = moment
            self.in_use -= buffer["size"]
        else:
            raise InvalidTrace(f"{where}: event is neither alloc nor dealloc.", param="files")
        self.peak = max(self.peak, self.in_use)
        self.events.append(
            BufferEvent(
                timestamp_ms=moment,
                event=kind,
                buffer_id=buffer_id,
                buffer_name=buffer["name"],
                size=buffer["size"],
                cumulative_size=self.in_use,
                num_active_buffers=len(self.active),
            )
        )
        return True

    def whole(self) -> BufferTimeline:
        moments = [event.timestamp_ms for event in self.events]
        usages = Counter(buffer["usage_name"] for buffer in self.buffers)
        summary = BufferSummary(
            total_events=len(self.events),
            total_buffers=len(self.buffers),
            peak_occupancy_bytes=self.peak,
            peak_occupancy_mb=round(self.peak / _MIB, 2),
            duration_ms=round(max(moments, default=0.0) - min(moments, default=0.0), 3),
            usage_breakdown={name: usages[name] for name in (*_USAGES, *sorted(set(usages) - set(_USAGES)))},
        )
        by_time = sorted(self.buffers, key=lambda buffer: float(buffer["alloc_time_ms"]))
        return BufferTimeline(
            metadata=summary, buffers=tuple(Buffer(**each) for each in by_time), timeline=tuple(self.events)
        )


def _events(file: SourceFile, reading: Reading, findings: list[Finding]) -> Iterator[tuple[dict[str, Any], str]]:
    for number, text in file.lines(reading.limits.max_line_bytes):
        where = f"{file.name}, line {number}"
        if number > _MAX_EVENTS:
            raise InvalidTrace(f"{where}: more than {_MAX_EVENTS:,} allocations and the like.", param="files")
        try:
            event = parse(text, where)
        except InvalidTrace:
            if text.endswith(b"\n"):
                raise
            findings.append(
                Finding(
                    code="truncated", severity=Severity.WARNING, message=f"{where}, the last one, is cut off: left out."
                )
            )
            return
        if not isinstance(event, dict):
            raise InvalidTrace(f"{where} is no JSON object.", param="files")
        yield event, where


def _allocated(event: dict[str, Any], buffer_id: int, moment: float, where: str) -> dict[str, Any]:
    usage = event.get("usage", 0)
    usage = usage if type(usage) is int and 0 <= usage < 256 else 0
    layer = event.get("layer")
    return {
        "id": buffer_id,
        "name": str(event.get("name", ""))[:200],
        "size": integer(event.get("size"), where, "size", below=2**53),
        "backend": str(event.get("backend", ""))[:200],
        "usage": usage,
        "usage_name": _USAGES[usage] if usage < len(_USAGES) else f"UNKNOWN_{usage}",
        "layer": layer if type(layer) is int and 0 <= layer < 65_535 else None,
        "alloc_time_ms": moment,
        "dealloc_time_ms": None,
    }


def _moment(value: Any, where: str) -> float:
    if type(value) not in {int, float} or not abs(value) < 1e18:
        raise InvalidTrace(f"{where}: timestamp_ms is no number.", param="files")
    return float(value)


def write_buffers(runs: Sequence[TracedBuffers]) -> str:
    """The text of BUFFERS."""
    return AllBuffers(runs=tuple(runs)).model_dump_json() + "\n"
