"""Decode and prefill: the routed mixture in our engine against the base model alone and its peers, interleaved.

Systems: `transformers.generate` of the bare base; PEFT with one adapter, a mixed batch, Arrow and X-LoRA; two passes
with caches; the base, one adapter and routed mixtures in our engine. Every round measures every system once, so that a
noisy machine disturbs all alike; ratios are taken within a round. Worst case: four of eight experts at every token.
Realistic: a Bayes router over the text, one or two experts per token.

    python -m benchmarks.decode_prefill --shape S --rounds 9

writes benchmarks/results/decode_prefill-<date>.json and .md.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from collections.abc import Sequence as Items
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks import peers
from benchmarks.peers import CLOCK, generate_seconds
from benchmarks.results_file import machine, quartiles, write_results
from benchmarks.serving_parts import BenchEngine, SpreadScorer, bayes_scorer, bench_engine, random_adapters

SHAPES = {
    "S": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
}
VOCAB_SIZE, NUM_EXPERTS, RANK = 32_000, 8, 8
DECODE_PROMPT, PREFILL_PROMPT = 32, 512
BASELINE = "generate"
Measure = Callable[[], float]
PER_TOKEN = 4
"""Experts at every token in the worst case, Arrow and two passes; X-LoRA always applies all eight."""
OURS = "engine, routed, 4 of 8 experts"


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
        base, ours = self.seconds[BASELINE], self.seconds[OURS]
        return {
            system: {
                "tokens_per_second": round(self.num_tokens / statistics.median(seconds), 1),
                "ratio": quartiles([b / s for b, s in zip(base, seconds, strict=True)]),
                "ours_over_it": quartiles([s / o for o, s in zip(ours, seconds, strict=True)]),
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


def build_columns(
    shape: str, batches: Items[int], num_new: int, folder: Path, others: dict[str, peers.Measure]
) -> list[Column]:
    """All settings over one base model, shared by all systems; `others` are measured beside ours."""
    model = base_model(shape)
    adapters = random_adapters(model, num_experts=NUM_EXPERTS, rank=RANK)
    names = tuple(adapters)
    bayes = bayes_scorer(folder, names, VOCAB_SIZE)
    # Copies of the base model, so that hooks and layouts of one system do not touch another.
    engine = bench_engine(base_model(shape), adapters, max_sequences=max(batches), max_context=1024)
    plans: dict[str, dict[str, Any]] = {
        "engine, base": {},
        "engine, one adapter": {"fixed": {names[0]: 1.0}},
        "engine, routed, 1-2 experts": {"scorer": bayes},
        OURS: {"scorer": SpreadScorer(bayes, per_token=PER_TOKEN)},
    }
    others = {BASELINE: partial(generate_seconds, model), **others}

    def column(name: str, batch: int, num_prompt: int, steps: int) -> Column:
        systems = {system: partial(measure, batch, num_prompt, steps) for system, measure in others.items()}
        for system, plan in plans.items():
            systems[system] = partial(engine_seconds, engine, plan, batch, num_prompt, steps)
        return Column(name, batch * (steps or num_prompt), systems)

    decode = [column(f"{shape}, decode, batch {batch}", batch, DECODE_PROMPT, num_new) for batch in batches]
    return [*decode, column(f"{shape}, prefill {PREFILL_PROMPT}", 1, PREFILL_PROMPT, 0)]


def build_peers(shape: str, folder: Path) -> dict[str, peers.Measure]:
    """The others, each over a base model of its own with adapters of the same shapes."""
    adapters = tuple(random_adapters(base_model(shape), num_experts=NUM_EXPERTS, rank=RANK).values())
    paths = peers.write_adapters(base_model(shape), folder / "peft", num_experts=NUM_EXPERTS, rank=RANK)
    few = None if shape == "S" else peers.FEW_STEPS
    return {
        "PEFT, one adapter": peers.one_adapter(base_model(shape), paths),
        "PEFT, mixed batch": peers.mixed_batch(base_model(shape), paths),
        f"PEFT Arrow, top {PER_TOKEN}": peers.arrow(base_model(shape), paths, top_k=PER_TOKEN),
        "PEFT X-LoRA": peers.xlora(base_model(shape), paths, few=few),
        f"two passes with caches, top {PER_TOKEN}": peers.two_passes(base_model(shape), adapters, top_k=PER_TOKEN),
    }


def table(columns: Items[Column]) -> str:
    """Ratios in Markdown: median [quartiles], and tokens per second, and how often ours (worst case) is as fast."""
    lines = [f"| system | {' | '.join(column.name for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for system in columns[0].systems:
        cells = []
        for column in columns:
            entry = column.summary()[system]
            low, middle, high = entry["ratio"]
            cells.append(
                f"**{middle:.3g}** [{low:.3g}, {high:.3g}] {entry['tokens_per_second']:,.0f}/s, "
                f"{entry['ours_over_it'][1]:.3g}x"
            )
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON", help="a Python with llama-cpp-python and gguf")
    parser.add_argument("--no-peers", action="store_true", help="only generate and our engine")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = machine()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        others = {} if options.no_peers else build_peers(options.shape, folder)
        if options.llama_cpp is not None:
            base = peers.llama_cpp(options.llama_cpp, base_model(options.shape), folder / "llama_cpp")
            others["llama.cpp, base"] = stack.enter_context(base)
        columns = build_columns(options.shape, options.batches, options.new_tokens, folder, others)
        for round_number in range(-1, options.rounds):
            for column in columns:
                column.measure()
            if round_number < 0:  # the first warms up
                for column in columns:
                    column.seconds.clear()
            print(f"round {round_number + 1} of {options.rounds}", flush=True)
    write_results(
        options.output / f"decode_prefill-{options.shape}",
        title="Decode and prefill",
        about=(
            f"{options.rounds} interleaved rounds, CPU time. Ratio to `transformers.generate` of the base alone: "
            f"median [quartiles]; then tokens per second in the median round, and how many times as fast '{OURS}' is. "
            f"{NUM_EXPERTS} adapters of rank {RANK} on all seven projections are resident."
        ),
        machine=started,
        table=table(columns),
        figures={"rounds": options.rounds, "columns": {column.name: column.summary() for column in columns}},
    )


if __name__ == "__main__":
    main()
