"""Training: an expert job's against a bare PEFT and `transformers.Trainer` script, a router's step against an expert's.

Every training runs in a process of its own, and all of a table take their steps in turns, so that a noisy machine
disturbs all alike; ratios are taken step by step.

    python -m benchmarks.training

writes benchmarks/results/training-<date>.json and .md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.decode_prefill import base_model
from benchmarks.results_file import machine, quartiles, write_results

PROJECT: Final = Path(__file__).resolve().parents[1]
DEMO: Final = PROJECT / "demo" / "base"
WARM_UP: Final = 2
"""Intervals left out at the beginning."""


@dataclass(frozen=True)
class Table:
    """Trainings of one base model, compared with the first of them."""

    name: str
    base: Path
    systems: tuple[str, ...]
    num_steps: int
    eval_steps: int
    batch_size: int = 8
    max_length: int = 256

    def hyperparameters(self) -> str:
        """A job's defaults, but for what is compared."""
        return json.dumps(
            {
                "max_steps": self.num_steps,
                "eval_steps": self.eval_steps,
                "early_stopping_patience": 0,
                "batch_size": self.batch_size,
                "max_length": self.max_length,
            }
        )


class Training:
    """A training in a process of its own, one step at a time."""

    def __init__(self, system: str, table: Table, folder: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.training_run", system, str(table.base), str(folder)]
        command += [table.hyperparameters(), "--threads", str(threads)]
        self._log = (folder.parent / f"{folder.name}.log").open("w+")
        self._process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.figures: dict[str, Any] | None = None
        self._read()

    def turn(self) -> None:
        """Let it do one step, or what comes after the last."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "step\n":
                return
            if line.startswith('{"wall_s"'):
                self.figures = json.loads(line)
                self._process.wait()
                return
        self._log.seek(0)
        raise SystemExit(f"a training ended with exit code {self._process.wait()}:\n{self._log.read()[-4000:]}")


def run_table(table: Table, folder: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Figures by system."""
    trainings = {}
    for system in table.systems:
        (folder / system).mkdir(parents=True)
        trainings[system] = Training(system, table, folder / system, threads)
    for step in range(table.num_steps):
        turn = step % len(trainings)
        names = list(trainings)
        for name in names[turn:] + names[:turn]:
            trainings[name].turn()
        print(f"{table.name}: step {step + 1} of {table.num_steps}", flush=True)
    shutil.rmtree(folder)
    return {name: training.figures or {} for name, training in trainings.items()}


def summary(table: Table, figures: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Per system: tokens per second of a plain step, ratios to the first system's speed, peak memory."""
    first = figures[table.systems[0]]
    whole = range(WARM_UP, table.num_steps - 1)
    plain = [index for index in whole if (index + 1) % table.eval_steps]
    tokens = max(entry["num_tokens"] for entry in figures.values()) / table.num_steps
    return {
        system: {
            "tokens_per_cpu_s": round(tokens / statistics.median(entry["cpu_s"][index] for index in plain), 1),
            "step_cpu_s": quartiles([entry["cpu_s"][index] for index in plain]),
            "ratio_steps_cpu": quartiles([first["cpu_s"][index] / entry["cpu_s"][index] for index in plain]),
            "ratio_steps_wall": quartiles([first["wall_s"][index] / entry["wall_s"][index] for index in plain]),
            "ratio_all_cpu": round(total(first["cpu_s"], whole) / total(entry["cpu_s"], whole), 3),
            "ratio_all_wall": round(total(first["wall_s"], whole) / total(entry["wall_s"], whole), 3),
            "peak_memory_mb": round(entry["peak_memory_bytes"] / 1e6),
            "ratio_memory": round(entry["peak_memory_bytes"] / first["peak_memory_bytes"], 3),
            "first_loss": entry["first_loss"],
        }
        for system, entry in figures.items()
    }


def total(values: Items[float], indices: Items[int]) -> float:
    """Of some of the values."""
    return sum(values[index] for index in indices)


def random_base(folder: Path) -> Path:
    """A random Llama of 15 million parameters with the demo's tokenizer."""
    base_model("S").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(DEMO / name, folder / name)
    return folder


def tables(options: argparse.Namespace, folder: Path) -> list[Table]:
    """What is compared; the pretrained base of others only where it is."""
    pair, steps = ("bare", "ours"), options.steps
    every = max(steps // 3, 1)
    made = [Table("demo base, 2.4M", DEMO, pair, steps, every)]
    stories = options.shared / "models" / "stories260K-hf"
    if stories.is_dir():
        made.append(Table("stories260K", stories, pair, 2 * steps, 2 * every))
        # Hardly any arithmetic: what is left is what is done around a step.
        made.append(Table("stories260K, one row of 32", stories, pair, 6 * steps, 6 * every, 1, 32))
    else:
        print(f"stories260K is left out: {stories} is not there")
    few = max(steps // 2, 6)
    made.append(Table("random, 15M", random_base(folder / "random"), pair, few, few // 2))
    made.append(Table("router and expert, demo base", DEMO, ("ours", "router"), few, few))
    return made


def markdown(results: Mapping[str, dict[str, Any]]) -> str:
    """The tables for people."""
    lines = [
        "| training | tokens per CPU second | speed of a step: CPU, wall | with evaluations and checkpoints: CPU, wall "
        "| peak memory | training loss until the first evaluation |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for table, systems in results.items():
        for system, entry in systems.items():
            low, middle, high = entry["ratio_steps_cpu"]
            lines.append(
                f"| {table}: {system} | {entry['tokens_per_cpu_s']:,.0f} | **{middle:.3f}** [{low:.3f}, {high:.3f}], "
                f"{entry['ratio_steps_wall'][1]:.3f} | {entry['ratio_all_cpu']:.3f}, {entry['ratio_all_wall']:.3f} "
                f"| {entry['peak_memory_mb']:,} MB ({entry['ratio_memory']:.3f}) | {_number(entry['first_loss'])} |"
            )
    return "\n".join(lines)


def _number(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.7g}"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shared", type=Path, default=PROJECT.parent / "shared", help="where other models are")
    parser.add_argument("--output", type=Path, default=PROJECT / "benchmarks" / "results")
    options = parser.parse_args()
    where = machine() | {"threads": options.threads}
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="amoe-training-") as name:
        folder = Path(name)
        results = {}
        for table in tables(options, folder):
            results[table.name] = summary(table, run_table(table, folder / "runs", options.threads))
            print(markdown(results), flush=True)
    write_results(
        options.output / "training",
        title="Training",
        about=(
            "Speed against the first row of each pair, taken step by step in turns: median [quartiles]. Batches of 8 "
            "blocks of up to 256 tokens, rank 16 on all linear layers, float32; evaluations and checkpoints two or "
            "three times, as often in the bare script."
        ),
        machine=where,
        table=markdown(results),
        figures={"trainings": results},
    )


if __name__ == "__main__":
    main()
