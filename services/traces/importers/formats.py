"""Which formats there are.

To add one: a file like `moe_routes` with `detect`, which looks at a file's beginning, and `read`, which adds sequences
and their tokens to an Intake and returns what it found wrong; a name in TraceSource and in the options' TraceFormat
(services/shared/schemas/trace_import.py); a line here. Unpacking, bounds, the traps that all recordings share, the job,
the analysis and the page follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.traces.description import Finding, TraceSource
from services.traces.importers import fingerprint, llama_cpp, moe_routes, token_json
from services.traces.importers.intake import Intake
from services.traces.importers.source_file import Reading, SourceFile


@dataclass(frozen=True)
class Format:
    """`source` names it; `looks_like` tells people what such a file is."""

    source: TraceSource
    looks_like: str
    detect: Callable[[SourceFile, Reading], bool]
    read: Callable[[Sequence[SourceFile], Intake, Reading], list[Finding]]


FORMATS: Final = {
    each.source.value: each
    for each in (
        Format(TraceSource.LLAMA_CPP, "llama.cpp's tensor_trace.bin", llama_cpp.detect, llama_cpp.read),
        Format(TraceSource.TOKEN_JSON, "token-NNNNN.json with entries", token_json.detect, token_json.read),
        Format(TraceSource.MOE_ROUTES, "JSON lines with topk_ids", moe_routes.detect, moe_routes.read),
        Format(TraceSource.FINGERPRINT, "JSON with router_data", fingerprint.detect, fingerprint.read),
    )
}
"""By name. Where an upload holds the same in two forms, the earlier one is read."""


def format_of(file: SourceFile, reading: Reading) -> Format | None:
    """What the file looks like, or what its owner says that all are."""
    if reading.options.format is not None:
        return FORMATS[reading.options.format]
    return next((each for each in FORMATS.values() if file.num_bytes and each.detect(file, reading)), None)
