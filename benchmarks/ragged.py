"""Ragged traffic: requests of unequal length through the engine, against static batches of the same requests.

Static batches are what `transformers.generate` offers: sixteen requests start together and the batch lasts as long as
its longest. In the engine a sequence leaves when it is done and the next one joins at the next step. Both serve the
base model alone and the engine also the routed mixture, so that what batching gives and what it costs stand apart.

    python -m benchmarks.ragged --rounds 5

writes benchmarks/results/ragged-<shape>-<date>.json and .md.
"""

import argparse
import tempfile
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.decode_prefill import NUM_EXPERTS, RANK, SHAPES, VOCAB_SIZE, base_model
from benchmarks.peers import CLOCK
from benchmarks.results_file import machine, quartiles, write_results
from benchmarks.serving_parts import BenchEngine, SpreadScorer, bayes_scorer, bench_engine, random_adapters

BATCH: Final = 16
BASELINE: Final = "generate, static batches"


@dataclass(frozen=True)
class Job:
    """A request: its prompt, and how many tokens it wants."""

    prompt_ids: list[int]
    num_new: int


def draw_jobs(num_jobs: int, *, seed: int) -> list[Job]:
    """Prompts of 8 to 64 tokens; lengths of answers log-normal around 24, at most 128, as chat traffic is skewed."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(np.log(24), 0.8, num_jobs), 2, 128).astype(int)
    return [Job(generator.integers(3, VOCAB_SIZE, generator.integers(8, 65)).tolist(), int(n)) for n in lengths]


def static_seconds(model: PreTrainedModel, jobs: Items[Job]) -> float:
    """CPU seconds of `generate` over batches of sixteen in order of arrival, padded on the left."""
    started_at = CLOCK()
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        longest = max(len(job.prompt_ids) for job in batch)
        prompt_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(prompt_BT)
        for row, job in enumerate(batch):
            prompt_BT[row, longest - len(job.prompt_ids) :] = torch.tensor(job.prompt_ids)
            mask_BT[row, longest - len(job.prompt_ids) :] = 1
        num_new = max(job.num_new for job in batch)
        model.generate(
            input_ids=prompt_BT,
            attention_mask=mask_BT,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return CLOCK() - started_at


def engine_seconds(engine: BenchEngine, plan: dict[str, Any], jobs: Items[Job]) -> float:
    """CPU seconds of the engine over the same requests, all of them waiting at the start."""
    for number, job in enumerate(jobs):
        engine.submit(str(number), job.prompt_ids, max_new_tokens=job.num_new, **plan)
    started_at = CLOCK()
    engine.run()
    return CLOCK() - started_at


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = machine()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = base_model(options.shape)
        adapters = random_adapters(model, num_experts=NUM_EXPERTS, rank=RANK)
        bayes = bayes_scorer(Path(folder), tuple(adapters), VOCAB_SIZE)
        engine = bench_engine(
            base_model(options.shape), adapters, max_sequences=BATCH, max_context=1024, max_waiting=options.jobs
        )
        systems: dict[str, Callable[[Items[Job]], float]] = {
            BASELINE: partial(static_seconds, model),
            "engine, base": partial(engine_seconds, engine, {}),
            "engine, routed, 1-2 experts": partial(engine_seconds, engine, {"scorer": bayes}),
            "engine, routed, 4 of 8 experts": partial(
                engine_seconds, engine, {"scorer": SpreadScorer(bayes, per_token=4)}
            ),
        }
        for round_number in range(options.rounds):
            jobs = draw_jobs(options.jobs, seed=round_number)
            for name, measure in systems.items():
                seconds.setdefault(name, []).append(measure(jobs))
            print(f"round {round_number + 1} of {options.rounds}", flush=True)
    ratios = {
        name: quartiles([base / own for base, own in zip(seconds[BASELINE], taken, strict=True)])
        for name, taken in seconds.items()
    }
    lines = ["| system | speed over static batches |", "|---|---|"]
    lines += [f"| {name} | **{middle:.2f}** [{low:.2f}, {high:.2f}] |" for name, (low, middle, high) in ratios.items()]
    write_results(
        options.output / f"ragged-{options.shape}",
        title="Ragged traffic",
        about=f"{options.jobs} requests, {BATCH} at a time, {options.rounds} interleaved rounds, CPU time.",
        machine=started,
        table="\n".join(lines),
        figures={"seconds": seconds, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
