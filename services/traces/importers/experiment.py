"""An experiment's folder beside its traces: `summary.json`, and what holds no choices at all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.traces.importers.source_file import Reading, SourceFile, parse

SUMMARY: Final = "summary.json"
_LONGEST: Final = 200
_KNOWN: Final = re.compile(
    r"(?:^|/)(?:summary\.json|prompts\.json|settings\.json|memory-map\.json|buffer-timeline\.json|graphs/[^/]*"
    r"|[^/]*\.(?:md|txt|log|csv|dot|png|svg))$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Summary:
    """What `summary.json` tells: domains by folder, where it names any, the model, and how many experts it has."""

    domains: Mapping[str, str]
    model: str | None
    num_experts: int | None = None
    top_k: int | None = None


def read_summary(files: Sequence[SourceFile], reading: Reading) -> Summary:
    """Of the first one there is; nothing is told without it."""
    for file in files:
        if file.base_name == SUMMARY:
            summary = parse(file.text(reading.limits.max_json_bytes), file.name)
            if isinstance(summary, dict):
                model = summary.get("model")
                return Summary(
                    domains=_domains(summary),
                    model=model[:_LONGEST] if isinstance(model, str) else None,
                    num_experts=_count(summary.get("num_experts"), below=2**16),
                    top_k=_count(summary.get("top_k"), below=2**8),
                )
    return Summary({}, None)


def _count(told: Any, *, below: int) -> int | None:
    return told if type(told) is int and 0 < told < below else None


def holds_no_choices(file: SourceFile) -> bool:
    """Whether it is known to be of an experiment, but not of its choices."""
    return _KNOWN.search(file.name) is not None


def _domains(summary: Mapping[str, Any]) -> dict[str, str]:
    listed = summary.get("domains")
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    pairs = [(each.get("id"), each.get("domain")) for each in entries]
    return {
        folder: domain[:_LONGEST] for folder, domain in pairs if isinstance(folder, str) and isinstance(domain, str)
    }
