"""Rows per second and memory of an analysis, and of a plain loop over rows like that of the requirements; each in a
process of its own: `python -m benchmarks.trace_statistics.speed analysis|counts|loop FOLDER` prints them as JSON."""

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
from services.traces.statistics.sequence_counts import sequence_counts
from services.traces.table import DESCRIPTION, Trace, TraceWriter, layer_file

NUM_LAYERS = 24
NUM_EXPERTS = 32
TOP_K = 4
PROMPT_TOKENS = 100
DOMAINS = ("code", "math", "creative", "factual", "mixed")


def write_random(folder: Path, num_rows: int) -> float:
    """Seconds that one layer of a trace of about so many rows takes to write; the other layers are that one again. All
    tokens are generated ones."""
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
            first = generator.integers(0, NUM_EXPERTS, (PROMPT_TOKENS, 1))
            others = np.array([0, 5, 11, 17]) + generator.integers(0, 5, (PROMPT_TOKENS, 1))
            writer.add(
                0,
                sequence,
                positions=np.arange(PROMPT_TOKENS),
                phases=Phase.GENERATED,
                experts=(first + others) % NUM_EXPERTS,
                weights=weights,
                token_ids=token_ids,
            )
        description = writer.finish(num_experts={0: NUM_EXPERTS})
    seconds = time.perf_counter() - started
    for layer in range(1, NUM_LAYERS):
        layer_file(folder, layer).hardlink_to(layer_file(folder, 0))
    (one,) = description.layers
    layers = tuple(one.model_copy(update={"layer": layer}) for layer in range(NUM_LAYERS))
    (folder / DESCRIPTION).write_text(description.model_copy(update={"layers": layers}).model_dump_json())
    return seconds


def bulk_counts(trace: Trace) -> dict[str, Any]:
    """What the plain loop counts, with the functions that an analysis is made of."""
    cells = stays = pairs = 0
    for layer in trace.layers:
        choices = trace.layer(layer)
        frequency_DE = np.zeros((len(DOMAINS), NUM_EXPERTS))
        counts = sequence_counts(choices)
        np.add.at(frequency_DE, counts.domains_N, counts.assignments_NE)
        cells += np.count_nonzero(frequency_DE)
        first_T, sequences_T = choices.experts[:, 0], choices.sequences
        within = sequences_T[1:] == sequences_T[:-1]
        pairs += within.sum()
        stays += (first_T[1:] == first_T[:-1])[within].sum()
    return {"cells": int(cells), "repetition": float(stays / pairs)}


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


def _all_figures(trace: Trace) -> dict[str, Any]:
    analyse(trace)
    return {}


def main() -> None:
    """Of a trace that is there."""
    system, folder = sys.argv[1], Path(sys.argv[2])
    trace = Trace(folder)
    started, processor = time.perf_counter(), time.process_time()
    found = {"loop": plain_loop, "counts": bulk_counts, "analysis": _all_figures}[system](trace)
    print(
        json.dumps(
            {
                "found": found,
                "rows": sum(layer.num_rows for layer in trace.description.layers),
                "seconds": time.perf_counter() - started,
                "processor_seconds": time.process_time() - processor,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
