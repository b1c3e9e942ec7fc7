"""The statistics of traces: false discoveries where nothing is, coverage and power where something is, speed, memory.

    python -m benchmarks.trace_statistics [rates] [speed] [--seeds 200] [--rows 1000000 10000000]

writes benchmarks/results/trace_statistics-rates-<date>.json and .md, and those of -speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, machine, write_results
from benchmarks.trace_statistics.rates import NUM_EXPERTS as RATE_EXPERTS
from benchmarks.trace_statistics.rates import NUM_TOKENS, measured, settings
from benchmarks.trace_statistics.speed import NUM_EXPERTS, NUM_LAYERS, PROMPT_TOKENS, TOP_K, write_random

LOOP_ROWS = 1_000_000
"""More than this a list of dictionaries does not fit into memory."""


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "speed"), nargs="*", default=("rates", "speed"))
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    arguments = parser.parse_args()
    if "rates" in arguments.what:
        _write_rates(arguments.seeds)
    if "speed" in arguments.what:
        _write_speeds(arguments.rows)


def _write_rates(seeds: int) -> None:
    where = machine()
    rates = {setting.name: measured(setting, range(seeds)) for setting in settings()}
    write_results(
        RESULTS / "trace_statistics-rates",
        title="Statistics of traces: false discoveries, power, coverage",
        about=(
            f"{seeds} seeds of each setting: 4 domains, prompts of {NUM_TOKENS} tokens, {RATE_EXPERTS} experts. A "
            "discovery is p < 0.05, or of several cells q < 0.05 for any; with nothing planted 5 % is the stated rate "
            "of both. Intervals are stated to hold 95 %. In brackets the rates' own 95 % intervals (Wilson)"
        ),
        machine=where,
        table=f"{_rate_table('discovered', rates)}\n\n{_rate_table('covered', rates)}",
        figures={"rates": rates},
    )


def _write_speeds(sizes: Sequence[int]) -> None:
    where = machine()
    speeds: list[dict[str, Any]] = []
    # The largest takes long: what is known by then is there.
    for size in sizes:
        speeds += _speeds(size)
        write_results(
            RESULTS / "trace_statistics-speed",
            title="Statistics of traces: speed and memory",
            about=(
                f"{NUM_LAYERS} layers x {NUM_EXPERTS} experts x top-{TOP_K}, prompts of {PROMPT_TOKENS} generated "
                "tokens. The loop, over a dictionary for each row as in the requirements, counts frequencies and one "
                "repetition; `counts` are the same in bulk; `analysis` is all figures, with 999 permutations, 999 "
                "resamples and simulated caches. Others used the machine too: processor seconds tell more than seconds"
            ),
            machine=where,
            table=_speed_table(speeds),
            figures={"speeds": speeds},
        )


def _speeds(size: int) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        written = write_random(trace, size)
        for system in ("loop", "counts", "analysis"):
            if system != "loop" or size <= LOOP_ROWS:
                command = [sys.executable, "-m", "benchmarks.trace_statistics.speed", system, str(trace)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append({"system": system, "written_seconds": written * NUM_LAYERS, **json.loads(answer.stdout)})
    return found


def _rate_table(kind: str, rates: dict[str, Any]) -> str:
    names = {name: None for setting in rates.values() for name in setting[kind]}
    columns = [setting for setting in rates if rates[setting][kind]]
    lines = [[f"{kind}, %", *columns], ["---"] * (len(columns) + 1)]
    for name in names:
        cells = [rates[setting][kind].get(name) for setting in columns]
        lines.append([name, *(_rate(cell) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rate(cell: dict[str, float] | None) -> str:
    if cell is None:
        return ""
    return f"{100 * cell['rate']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _speed_table(speeds: Sequence[dict[str, Any]]) -> str:
    header = (
        "system",
        "rows",
        "seconds",
        "processor seconds",
        "rows per second",
        "peak memory, MB",
        "rows written, /s",
    )
    lines = [f"| {' | '.join(header)} |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for one in speeds:
        lines.append(
            f"| {one['system']} | {one['rows']:,} | {one['seconds']:.1f} | {one['processor_seconds']:.1f} | "
            f"{one['rows'] / one['seconds']:,.0f} | {one['peak_mb']:,.0f} | "
            f"{one['rows'] / one['written_seconds']:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
