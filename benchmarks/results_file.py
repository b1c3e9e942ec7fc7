"""Where benchmarks write: a dated JSON file with every figure, and a Markdown table for people."""

import json
import os
import platform
import statistics
from collections.abc import Sequence as Items
from datetime import date
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Where it was measured, and how busy it was at the start."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def quartiles(values: Items[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return [round(values[0], 3)] * 3
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def write_results(
    stem: Path, *, title: str, about: str, machine: dict[str, Any], table: str, figures: dict[str, Any]
) -> None:
    """Write `<stem>-<date>.json` and `.md`, and print the latter."""
    today = date.today().isoformat()
    stem.parent.mkdir(parents=True, exist_ok=True)
    result = {"date": today, "machine": machine, **figures}
    stem.with_name(f"{stem.name}-{today}.json").write_text(json.dumps(result, indent=1) + "\n")
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = f"# {title}, {today}\n\n{where}. {about}\n\n{table}\n"
    stem.with_name(f"{stem.name}-{today}.md").write_text(text)
    print(text)
