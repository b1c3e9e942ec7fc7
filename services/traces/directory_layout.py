"""A trace as the requirements lay it out: a folder for each domain with a JSON file for each token, in a tarball.

`<experiment>/domain-1-code/traces/token-00000.json` and so on, `summary.json` and `prompts.json` beside the domains. Of
a domain's further prompts each has a folder of its own in it, `domain-1-code/code-2/traces/`, so that what reads one
prompt of each domain finds what it knows. A file is a token that was read, the prompt's first; an entry is a layer's
choice, once, as a MUL_MAT_ID. Fields that a tensor tracer fills (times, threads, sources) are 0 or empty: nothing of
the kind was measured. `expert_weights` is there beside them. Neither `graphs/` nor `buffer-timeline.json` is written.
"""

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from numpy.typing import NDArray

from services.traces.choices import NOBODY, Phase
from services.traces.description import TraceDescription

_PHASES: Final = {Phase.PROMPT: "PROMPT", Phase.GENERATED: "GENERATE"}
_MIB: Final = 1024**2
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")

Layer = tuple[NDArray[Any], NDArray[Any]]
"""experts and weights of a sequence, [T, K] each."""


class DirectoryLayout:
    """Writes `<experiment>.tar.gz` into a folder, sequence by sequence; `on` is its day, `prompts` the text
    of its prompts.json."""

    def __init__(self, folder: Path, *, experiment: str, on: date, prompts: str) -> None:
        self.file = folder / f"{experiment}.tar.gz"
        self._experiment = experiment
        self._on = on
        self._prompts = prompts
        # The fastest level: these files are long and all alike.
        self._tar = tarfile.open(self.file, "w:gz", compresslevel=1)  # noqa: SIM115
        self._domains: dict[str, dict[str, Any]] = {}
        self._folders: set[str] = set()

    def __enter__(self) -> "DirectoryLayout":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tar.close()

    def add(self, domain: str, prompt: str, phases: NDArray[Any], layers: Mapping[int, Layer]) -> None:
        """One prompt with its answer, T tokens that were read."""
        folder = self._folder_of(domain, prompt)
        rows = {layer: (experts.tolist(), weights.tolist()) for layer, (experts, weights) in sorted(layers.items())}
        num_bytes = 0
        for token, phase in enumerate(phases.tolist()):
            entries = [
                _entry(number, token, layer, _PHASES[Phase(phase)], experts[token], weights[token])
                for number, (layer, (experts, weights)) in enumerate(rows.items())
            ]
            content = {
                "token_id": token,
                "metadata": {
                    "total_entries": len(entries),
                    "duration_ms": 0.0,
                    "timestamp_start_ns": 0,
                    "format_version": "choices",
                },
                "entries": entries,
            }
            num_bytes += self._write(f"{folder}/traces/token-{token:05}.json", json.dumps(content))
        told = self._domains[domain]
        told["tokens"] += len(phases)
        told["size_mb"] += num_bytes / _MIB
        told["prompts"].append({"id": prompt, "folder": folder, "tokens": len(phases)})

    def finish(self, description: TraceDescription) -> None:
        """Write `summary.json` and `prompts.json`."""
        domains = [told | {"size_mb": round(told["size_mb"], 2)} for told in self._domains.values()]
        summary = {
            "experiment": self._experiment,
            "date": self._on.isoformat(),
            "model": description.model,
            "num_experts": max((layer.num_experts for layer in description.layers), default=0),
            "top_k": max((layer.top_k for layer in description.layers), default=0),
            "domains": domains,
        }
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")
        self._write("prompts.json", self._prompts)

    def _folder_of(self, domain: str, prompt: str) -> str:
        told = self._domains.setdefault(
            domain,
            {"id": f"domain-{len(self._domains) + 1}-{_safe(domain)}", "domain": domain, "tokens": 0, "size_mb": 0.0}
            | {"prompts": []},
        )
        folder: str = told["id"] if not told["prompts"] else f"{told['id']}/{_safe(prompt)}"
        if folder in self._folders or folder.endswith("/traces"):
            folder += f"-{len(told['prompts']) + 1}"
        self._folders.add(folder)
        return folder

    def _write(self, name: str, text: str) -> int:
        content = text.encode()
        member = tarfile.TarInfo(f"{self._experiment}/{name}")
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        return len(content)


def _entry(
    number: int, token: int, layer: int, phase: str, experts: Sequence[int], weights: Sequence[float]
) -> dict[str, Any]:
    chosen = [expert for expert in experts if expert != NOBODY]
    return {
        "entry_id": number,
        "timestamp_ns": 0,
        "timestamp_relative_ms": 0.0,
        "token_id": token,
        "layer_id": layer,
        "thread_id": 0,
        "phase": phase,
        "operation_type": "MUL_MAT_ID",
        "dst_name": f"ffn_moe-{layer}",
        "num_sources": 0,
        "sources": [],
        "expert_ids": chosen,
        "num_experts": len(chosen),
        "expert_weights": [round(weight, 6) for weight in weights[: len(chosen)]],
    }


def _safe(name: str) -> str:
    """As a folder's name."""
    return _UNSAFE.sub("-", name).strip(".-") or "prompt"
