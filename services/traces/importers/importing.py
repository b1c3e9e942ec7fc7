"""Files of any known format, as a trace."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from services.shared.errors import InvalidTrace
from services.traces.description import Finding, Severity, TraceDescription
from services.traces.importers import buffer_timeline
from services.traces.importers.buffer_timeline import BUFFERS, read_buffers, write_buffers
from services.traces.importers.experiment import holds_no_choices, read_summary
from services.traces.importers.formats import FORMATS, Format, format_of
from services.traces.importers.intake import Intake
from services.traces.importers.source_file import Reading, SourceFile, named
from services.traces.importers.unpacking import unpack
from services.traces.table import TraceWriter


def import_trace(files: Sequence[SourceFile], folder: Path, *, scratch: Path, reading: Reading) -> TraceDescription:
    """Read the files, archives among them, into the empty `folder`; `scratch` takes what is unpacked.

    Raises InvalidTrace, naming file and place, for what cannot be read or holds no choice.
    """
    findings: list[Finding] = []
    members = unpack(files, scratch, reading, findings)
    _refuse_same_names(members)
    summary = read_summary(members, reading)
    reading = replace(reading, domains=summary.domains)
    buffers = [file for file in members if buffer_timeline.detect(file, reading)]
    chosen, own = _sorted(members, buffers, reading, findings)
    with TraceWriter(folder, source=chosen.source) as writer:
        intake = Intake(writer, reading)
        intake.model = intake.model or summary.model
        intake.told(num_experts=summary.num_experts, top_k=summary.top_k)
        findings += chosen.read(own, intake, reading)
        if not intake.layers:
            raise InvalidTrace(
                f"No choice of an expert is left of {_names(own)}{_reasons(findings + intake.findings())}.",
                param="files",
            )
        findings += intake.findings()
        if buffers:
            runs = [read_buffers(file, reading, findings) for file in buffers]
            (folder / BUFFERS).write_text(write_buffers(runs), encoding="utf-8")
        return writer.finish(
            num_experts=intake.layers, findings=findings, model=intake.model, num_files=len(own), buffers=len(buffers)
        )


def _refuse_same_names(files: Sequence[SourceFile]) -> None:
    counts = Counter(file.name for file in files)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InvalidTrace(
            f"There are two files {twice[0][:200]!r}: pack them into one archive with their folders, which also tell "
            "their domains (domain-1-code/…).",
            param="files",
        )


def _sorted(
    members: Sequence[SourceFile], buffers: Sequence[SourceFile], reading: Reading, findings: list[Finding]
) -> tuple[Format, list[SourceFile]]:
    """The format that is read, and its files; what is left over is told."""
    by_format: dict[str, list[SourceFile]] = defaultdict(list)
    unknown: list[SourceFile] = []
    for file in members:
        if file in buffers or holds_no_choices(file):
            continue
        known = format_of(file, reading)
        (by_format[known.source.value] if known else unknown).append(file)
    if not by_format:
        raise _nothing_known(unknown or members)
    # The tracer's folders hold the same in two forms, so that it is not the number of files that counts.
    names = sorted(
        by_format, key=lambda name: (-len({file.folder for file in by_format[name]}), list(FORMATS).index(name))
    )
    for name in names[1:]:
        findings.append(_left_over(f"{FORMATS[names[0]].looks_like} was read, and not the others", by_format[name]))
    if unknown:
        findings.append(_left_over("of no known format", unknown))
    return FORMATS[names[0]], by_format[names[0]]


def _nothing_known(files: Sequence[SourceFile]) -> InvalidTrace:
    known = "; ".join(each.looks_like for each in FORMATS.values())
    return InvalidTrace(
        f"No choices of experts in {_names(files)}. What can be read: {known}; and tar archives of these. If a file is "
        "one of them, say which with `format`, and for an older llama.cpp tracer with `record_bytes`.",
        param="files",
    )


def _left_over(why: str, files: Sequence[SourceFile]) -> Finding:
    return Finding(
        code="files_not_read", severity=Severity.INFO, message=f"Not read, {why}: {_names(files)}.", count=len(files)
    )


def _names(files: Sequence[SourceFile]) -> str:
    return named([repr(file.name) for file in files]) or "no file"


def _reasons(findings: Sequence[Finding]) -> str:
    told = [finding.message for finding in findings if finding.severity is not Severity.INFO or finding.count]
    return f" ({' '.join(told[:3])})" if told else ""
