"""`token-NNNNN.json`: a file for each token, with the operations of its pass, as the tensor tracer's parser writes it.

A whole experiment is a folder for each domain with these files in `traces/`, and `summary.json` beside them.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.shared.errors import InvalidTrace
from services.traces.choices import Phase
from services.traces.description import Finding, Severity
from services.traces.importers.ggml_operations import WITH_EXPERTS
from services.traces.importers.intake import Intake
from services.traces.importers.llama_cpp import name_hash
from services.traces.importers.origin import origin
from services.traces.importers.passes import MOST_EXPERTS, NO_LAYER, OPERATION, Recording, write_passes
from services.traces.importers.source_file import Reading, SourceFile, expert_numbers, integer, named, parse

_NUMBERED: Final = re.compile(r"token-(\d{1,9})\.json")
_PHASES: Final = {"PROMPT": Phase.PROMPT, "GENERATE": Phase.GENERATED}


def detect(file: SourceFile, reading: Reading) -> bool:
    """Whether it is an object with a token's number and entries."""
    head = file.head()
    return head.lstrip()[:1] == b"{" and b'"token_id"' in head and b'"entries"' in head


def read(files: Sequence[SourceFile], intake: Intake, reading: Reading) -> list[Finding]:
    """One sequence for each folder."""
    findings: list[Finding] = []
    folders: dict[str, list[SourceFile]] = defaultdict(list)
    for file in sorted(files, key=_order):
        folders[file.folder].append(file)
    cut: list[str] = []
    recordings = [Recording(origin(folder, reading), _operations(own, reading, cut)) for folder, own in folders.items()]
    if cut:
        findings.append(_truncated(cut))
    return findings + write_passes(recordings, intake)


def _order(file: SourceFile) -> tuple[str, int, str]:
    match = _NUMBERED.fullmatch(file.base_name)
    return file.folder, int(match.group(1)) if match else -1, file.name


def _operations(files: Sequence[SourceFile], reading: Reading, cut: list[str]) -> NDArray[Any]:
    parts = [np.empty(0, dtype=OPERATION)]
    for file in files:
        reading.stop_if_asked()
        text = file.text(reading.limits.max_json_bytes)
        try:
            token = parse(text, file.name)
        except InvalidTrace:
            if text.rstrip().endswith("}"):
                raise
            cut.append(file.name)
            continue
        parts.append(_of_token(token, file.name))
    return np.concatenate(parts)


def _of_token(token: Any, where: str) -> NDArray[Any]:
    entries = token.get("entries") if isinstance(token, dict) else None
    if not isinstance(entries, list):
        raise InvalidTrace(f"{where} has no list of entries.", param="files")
    rows = [
        _of_entry(entry, f"{where}, entry {number}")
        for number, entry in enumerate(entries)
        if isinstance(entry, dict) and entry.get("operation_type") in WITH_EXPERTS and entry.get("expert_ids")
    ]
    return np.array(rows, dtype=OPERATION)


def _of_entry(entry: dict[str, Any], where: str) -> tuple[int, int, int, int, int, list[int]]:
    experts = expert_numbers(entry["expert_ids"], where, "expert_ids")[:MOST_EXPERTS]
    phase = _PHASES.get(str(entry.get("phase")))
    if phase is None:
        raise InvalidTrace(f"{where}: phase is neither PROMPT nor GENERATE.", param="files")
    layer = entry.get("layer_id")
    return (
        integer(entry.get("token_id"), where, "token_id"),
        NO_LAYER if layer is None else integer(layer, where, "layer_id", below=2**16),
        name_hash(str(entry.get("dst_name")).encode(errors="replace"), str(entry["operation_type"])),
        phase,
        len(experts),
        experts + [0] * (MOST_EXPERTS - len(experts)),
    )


def _truncated(names: Sequence[str]) -> Finding:
    return Finding(
        code="truncated",
        severity=Severity.WARNING,
        message=f"{named(names)}: cut off, and left out. The tracer may have been stopped, or the disk was full.",
        count=len(names),
    )
