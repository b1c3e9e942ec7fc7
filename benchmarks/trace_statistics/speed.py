"""Rows per second and memory of an analysis, and of a plain loop over rows like that of the requirements; each in a
process of its own: `python -m benchmarks.trace_statistics.speed analysis|loop FOLDER` prints them as JSON."""

import json
import resource
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from services.traces.analysis import analyse
from services.traces.choices import Phase
from services.traces.description import TraceSource
from services.traces.table import Trace, TraceWriter, layer_file

NUM_LAYERS = 24
NUM_EXPERTS = 32
TOP_K = 4
PROMPT_TOKENS = 100
DOMAINS = ("code", "math", "creative", "factual", "mixed")


def write_random(folder: Path, num_rows: int) -> float:
    """Seconds that a trace of about so many rows, of generated tokens alone, takes to write."""
    folder.mkdir(parents=True)
    num_prompts = max(len(DOMAINS), round(num_rows / (NUM_LAYERS * TOP_K * PROMPT_TOKENS)))
    generator = np.random.default_rng(0)
    weights = np.tile(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32), (PROMPT_TOKENS, 1))
    started = time.perf_counter()
    with TraceWriter(folder, source=TraceSource.NATIVE, model="random") as writer:
        for number in range(num_prompts):
            domain = DOMAINS[number % len(DOMAINS)]
            sequence = writer.add_sequence(domain, f"{domain}-{number}")
            token_ids = generator.zipf(1.3, PROMPT_TOKENS).clip(0, 50_000)
            for layer in range(NUM_LAYERS):
                first = generator.integers(0, NUM_EXPERTS, (PROMPT_TOKENS, 1))
                experts = (
                    first + np.array([0, 5, 11, 17]) + generator.integers(0, 5, (PROMPT_TOKENS, 1))
                ) % NUM_EXPERTS
                writer.add(layer, sequence, positions=np.arange(PROMPT_TOKENS), phases=Phase.GENERATED,
                           experts=experts, weights=weights, token_ids=token_ids)  # fmt: skip
        writer.finish(num_experts=dict.fromkeys(range(NUM_LAYERS), NUM_EXPERTS))
    return time.perf_counter() - started


def plain_loop(trace: Trace) -> dict[str, Any]:
    """The requirements' phases 1 to 3, a dictionary for each row: frequencies by domain, and how often the first choice
    stays. Kinder than theirs, which looks through all rows for every token and layer."""
    rows = [
        row | {"layer": layer, "domain": trace.sequences[row["sequence"]].domain}
        for layer in trace.layers
        for row in pq.read_table(layer_file(trace.folder, layer)).to_pylist()
    ]
    frequency: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    first: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for row in rows:
        frequency[row["domain"]][row["layer"], row["expert"]] += 1
        if row["rank"] == 0:
            first[row["layer"], row["sequence"]][row["position"]] = row["expert"]
    stays = pairs = 0
    for experts in first.values():
        for position, expert in experts.items():
            if position + 1 in experts:
                pairs += 1
                stays += experts[position + 1] == expert
    return {"cells": sum(map(len, frequency.values())), "repetition": stays / pairs}


def main() -> None:
    """Of a trace that is there."""
    system, folder = sys.argv[1], Path(sys.argv[2])
    trace = Trace(folder)
    started, processor = time.perf_counter(), time.process_time()
    if system == "loop":
        plain_loop(trace)
    else:
        analyse(trace)
    print(
        json.dumps(
            {
                "rows": sum(layer.num_rows for layer in trace.description.layers),
                "seconds": time.perf_counter() - started,
                "processor_seconds": time.process_time() - processor,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
