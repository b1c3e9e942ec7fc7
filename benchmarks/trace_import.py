"""Importing recordings of experts: rows per second and memory, beside a plain loop over the same file.

    python -m benchmarks.trace_import

Files as vLLM-style loggers (JSON lines, one token and layer each, top-8 of 64) and llama.cpp's tracer (records of 1,024
bytes, six operations that share one selection, top-4 of 32 in 24 layers) write them, of random choices. The plain loop
does what scripts do that people write for such files: unpack one record after the other, and count (layer, expert) by
domain in a dictionary; it looks for none of the traps and writes nothing. Each in a process of its own, in turn.
Writes benchmarks/results/trace_import-<date>.json and .md.
"""

import argparse
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.results_file import RESULTS, machine, write_results
from services.shared.config import TraceSettings
from services.shared.schemas.trace_import import ImportOptions
from services.traces.importers.importing import import_trace
from services.traces.importers.llama_cpp import record_type
from services.traces.importers.source_file import Reading, SourceFile

_RECORD_BYTES: Final = 1024
_LAYERS, _EXPERTS, _TOP_K = 24, 32, 4
_OPERATIONS: Final = tuple(
    (name, operation) for operation in (30, 3) for name in ("ffn_moe_gate", "ffn_moe_up", "ffn_moe_down")
)
_HEAD: Final = struct.Struct("<QIHHBBB5s")
_CHOICE: Final = struct.Struct("<16iB")
_CHOICE_AT: Final = 792


def write_routes(file: Path, num_lines: int) -> None:
    """JSON lines of requests of 200 tokens, one layer."""
    generator = np.random.default_rng(0)
    weights = [0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]
    with file.open("w") as target:
        meta = {"type": "meta", "model_id": "random", "layers_logged": [0], "top_k": 8, "num_experts": 64}
        target.write(json.dumps(meta) + "\n")
        for number in range(num_lines):
            ids = generator.permutation(64)[:8].tolist()
            route = {"type": "route", "req_id": f"r{number // 200}", "token_idx": number % 200, "layer": 0}
            target.write(json.dumps(route | {"topk_ids": ids, "topk_weights": weights}) + "\n")


def write_records(file: Path, num_passes: int) -> None:
    """llama.cpp's records of so many generated tokens."""
    generator = np.random.default_rng(0)
    per_pass = _LAYERS * len(_OPERATIONS)
    records = np.zeros(num_passes * per_pass, dtype=record_type(_RECORD_BYTES))
    records["timestamp_ns"] = np.arange(1, len(records) + 1)
    records["token_id"] = np.repeat(np.arange(num_passes), per_pass)
    layers = np.repeat(np.arange(_LAYERS), len(_OPERATIONS))
    records["layer_id"] = np.tile(layers, num_passes)
    records["operation"] = np.tile([operation for _, operation in _OPERATIONS], num_passes * _LAYERS)
    records["phase"] = 1
    records["num_sources"] = 3
    names = [f"{name}-{layer}".encode().ljust(128, b"\0") for layer in range(_LAYERS) for name, _ in _OPERATIONS]
    records["dst_name"] = np.tile(np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 128), (num_passes, 1))
    chosen = generator.random((num_passes * _LAYERS, _EXPERTS)).argsort(axis=1)[:, :_TOP_K]
    records["expert_ids"][:, :_TOP_K] = np.repeat(chosen, len(_OPERATIONS), axis=0)
    records["num_experts"] = _TOP_K
    records.tofile(file)


def loop_routes(file: Path) -> int:
    """Rows counted."""
    frequency: Counter[tuple[int, int]] = Counter()
    with file.open() as lines:
        for line in lines:
            route = json.loads(line)
            if route["type"] == "route":
                frequency.update((route["layer"], expert) for expert in route["topk_ids"])
    return sum(frequency.values())


def loop_records(file: Path) -> int:
    """Rows counted, one operation of each selection."""
    frequency: Counter[tuple[int, int]] = Counter()
    seen = None
    with file.open("rb") as source:
        while record := source.read(_RECORD_BYTES):
            _, token, layer, _, operation, _, _, _ = _HEAD.unpack_from(record)
            *ids, num_experts = _CHOICE.unpack_from(record, _CHOICE_AT)
            if operation == _OPERATIONS[0][1] and (token, layer) != seen:
                seen = token, layer
                frequency.update((layer, expert) for expert in ids[:num_experts])
    return sum(frequency.values())


def imported(file: Path) -> int:
    """Rows of the trace that it becomes."""
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        folder, scratch = Path(place, "trace"), Path(place, "scratch")
        folder.mkdir()
        scratch.mkdir()
        reading = Reading(ImportOptions(), TraceSettings(), stop_if_asked=lambda: None)
        description = import_trace([SourceFile(file.name, file)], folder, scratch=scratch, reading=reading)
        return sum(layer.num_rows for layer in description.layers)


_FILES: Final[dict[str, tuple[Callable[[Path, int], None], Callable[[Path], int]]]] = {
    "moe_routes.jsonl": (write_routes, loop_routes),
    "tensor_trace.bin": (write_records, loop_records),
}


def _measure_here(system: str, file: Path) -> None:
    started, processor = time.perf_counter(), time.process_time()
    rows = imported(file) if system == "import" else _FILES[file.name][1](file)
    found = {
        "rows": rows,
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }
    print(json.dumps(found))


def _measured(system: str, file: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.trace_import", "--here", system, str(file)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(answer)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200_000, help="of moe_routes.jsonl")
    parser.add_argument("--passes", type=int, default=2_000, help="of tensor_trace.bin")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", nargs=2, metavar=("SYSTEM", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        _measure_here(options.here[0], Path(options.here[1]))
        return
    where = machine()
    figures: dict[str, Any] = {}
    lines = ["| file | MB | rows | | processor s | rows/s | peak MB |", "|---|---:|---:|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as place:
        for name, size in zip(_FILES, (options.lines, options.passes), strict=True):
            file = Path(place, name)
            # Elsewhere: a process starts with the peak of the one that started it.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
                elsewhere.submit(_FILES[name][0], file, size).result()
            rounds = [{system: _measured(system, file) for system in ("import", "loop")} for _ in range(options.rounds)]
            figures[name] = {"bytes": file.stat().st_size, "rounds": rounds}
            for system, label in (("import", "imported and written"), ("loop", "plain loop, counts only")):
                seconds = statistics.median(each[system]["processor_seconds"] for each in rounds)
                rows, peak = rounds[0][system]["rows"], max(each[system]["peak_mb"] for each in rounds)
                cells = (name, f"{file.stat().st_size / 1e6:.0f}", f"{rows:,}", label, f"{seconds:.1f}")
                lines.append(f"| {' | '.join(cells)} | {rows / seconds:,.0f} | {peak:.0f} |")
    write_results(
        RESULTS / "trace_import",
        title="Importing recordings of experts",
        about="Processor time of one thread, medians of rounds in turn; peak of the whole process.",
        machine=where,
        table="\n".join(lines),
        figures=figures,
    )


if __name__ == "__main__":
    main()
