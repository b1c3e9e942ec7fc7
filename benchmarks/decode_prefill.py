"""Decode and prefill: the routed mixture in our engine against the base model alone, interleaved in one run.

Systems: `transformers.generate` of the bare base; the base, one adapter and routed mixtures in our engine. Every round
measures every system once, so that a noisy machine disturbs all alike; ratios are taken within a round. Worst case:
four of eight experts at every token. Realistic: a Bayes router over the text, one or two experts per token.

    python -m benchmarks.decode_prefill --rounds 9

writes benchmarks/results/decode_prefill-<date>.json and .md.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.serving_parts import BenchEngine, SpreadScorer, bayes_scorer, bench_engine, random_adapters

SHAPES = {
    "S": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VOCAB_SIZE, NUM_EXPERTS, RANK = 32_000, 8, 8
DECODE_PROMPT, PREFILL_PROMPT = 32, 512
BASELINE = "generate"
Measure = Callable[[], float]
CLOCK = time.process_time
"""CPU seconds: on one thread they are the work done, whatever else the machine is busy with."""


@dataclass
class Column:
    """One setting (decode at some batch, or prefill) and the seconds of each system by round."""

    name: str
    num_tokens: int
    systems: dict[str, Measure]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self) -> None:
        """One round."""
        for system, measure in self.systems.items():
            self.seconds.setdefault(system, []).append(measure())

    def summary(self) -> dict[str, Any]:
        """Tokens per second and the ratio to the baseline: median and quartiles over rounds."""
        base = self.seconds[BASELINE]
        return {
            system: {
                "tokens_per_second": round(self.num_tokens / statistics.median(seconds), 1),
                "ratio": _quartiles([b / s for b, s in zip(base, seconds, strict=True)]),
                "ratio_best": round(min(base) / min(seconds), 3),
            }
            for system, seconds in self.seconds.items()
        }


def base_model(shape: str) -> PreTrainedModel:
    """A random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=VOCAB_SIZE, max_position_embeddings=1024, tie_word_embeddings=shape == "S"
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.train(mode=False)


def generate_seconds(model: PreTrainedModel, batch: int, num_prompt: int, num_new: int) -> float:
    """Seconds of `num_new` decoding steps of transformers.generate, prefill taken off; of the prefill when it is 0."""
    prompt_BT = torch.randint(3, VOCAB_SIZE, (batch, num_prompt))
    mask_BT = torch.ones_like(prompt_BT)

    def run(num_tokens: int) -> float:
        started_at = CLOCK()
        model.generate(
            prompt_BT,
            attention_mask=mask_BT,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return CLOCK() - started_at

    return run(1 + num_new) - run(1) if num_new else run(1)


def engine_seconds(engine: BenchEngine, plan: dict[str, Any], batch: int, num_prompt: int, num_new: int) -> float:
    """The same in our engine: all prompts read first, then the steps counted."""
    generator = np.random.default_rng(0)
    for row in range(batch):
        prompt_ids = generator.integers(3, VOCAB_SIZE, num_prompt).tolist()
        engine.submit(str(row), prompt_ids, max_new_tokens=num_new + 3 if num_new else 1, **plan)
    started_at = CLOCK()
    while engine.num_decoding < batch and not (num_new == 0 and engine.is_idle):
        engine.step()
    if num_new:
        started_at = CLOCK()
        for _ in range(num_new):
            engine.step()
    seconds = CLOCK() - started_at
    engine.run()
    return seconds


def build_columns(shape: str, batches: Items[int], num_new: int, folder: Path) -> list[Column]:
    """All settings over one base model, shared by all systems."""
    model = base_model(shape)
    adapters = random_adapters(model, num_experts=NUM_EXPERTS, rank=RANK)
    names = tuple(adapters)
    bayes = bayes_scorer(folder, names, VOCAB_SIZE)
    # Its own copy of the base model, so that hooks and layouts of the engine do not touch the baseline.
    engine = bench_engine(base_model(shape), adapters, max_sequences=max(batches), max_context=1024)
    plans: dict[str, dict[str, Any]] = {
        "engine, base": {},
        "engine, one adapter": {"fixed": {names[0]: 1.0}},
        "engine, routed, 1-2 experts": {"scorer": bayes},
        "engine, routed, 4 of 8 experts": {"scorer": SpreadScorer(bayes, per_token=4)},
    }

    def column(name: str, batch: int, num_prompt: int, steps: int) -> Column:
        systems: dict[str, Measure] = {BASELINE: lambda: generate_seconds(model, batch, num_prompt, steps)}
        for system, plan in plans.items():
            systems[system] = lambda plan=plan: engine_seconds(engine, plan, batch, num_prompt, steps)
        return Column(name, batch * (steps or num_prompt), systems)

    decode = [column(f"{shape}, decode, batch {batch}", batch, DECODE_PROMPT, num_new) for batch in batches]
    return [*decode, column(f"{shape}, prefill {PREFILL_PROMPT}", 1, PREFILL_PROMPT, 0)]


def table(columns: Items[Column]) -> str:
    """Ratios in Markdown: median [quartiles], and tokens per second of the median round."""
    lines = [f"| system | {' | '.join(column.name for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for system in columns[0].systems:
        cells = []
        for column in columns:
            entry = column.summary()[system]
            low, middle, high = entry["ratio"]
            cells.append(f"**{middle:.2f}** [{low:.2f}, {high:.2f}] {entry['tokens_per_second']:,.0f}/s")
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = machine()
    with tempfile.TemporaryDirectory() as folder:
        columns = build_columns(options.shape, options.batches, options.new_tokens, Path(folder))
        for round_number in range(-1, options.rounds):
            for column in columns:
                column.measure()
            if round_number < 0:  # the first warms up
                for column in columns:
                    column.seconds.clear()
            print(f"round {round_number + 1} of {options.rounds}", flush=True)
    _write(options, started, columns)


def _write(options: argparse.Namespace, started: dict[str, Any], columns: Items[Column]) -> None:
    name = f"decode_prefill-{options.shape}-{date.today().isoformat()}"
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "date": date.today().isoformat(),
        "machine": started,
        "rounds": options.rounds,
        "columns": {column.name: column.summary() for column in columns},
    }
    (options.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in started.items())
    text = (
        f"# Decode and prefill, {result['date']}\n\n{about}; {options.rounds} interleaved rounds, CPU time. Ratio to "
        f"`transformers.generate` of the base alone: median [quartiles], then tokens per second of the median round. "
        f"{NUM_EXPERTS} adapters of rank {RANK} on all seven projections are resident.\n\n{table(columns)}\n"
    )
    (options.output / f"{name}.md").write_text(text)
    print(text)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _quartiles(values: Items[float]) -> list[float]:
    if len(values) < 2:
        return [round(values[0], 3)] * 3
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


if __name__ == "__main__":
    main()
