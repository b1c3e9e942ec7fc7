"""Does an always-on shared expert with domain experts on top of it beat one multi-task adapter? Real text, stories260K.

    python -m benchmarks.shared_expert [--seeds 0 1 2] [--steps 160] [--shared ../shared]

Every arm reads as many training tokens, and the two that are compared have as much rank. Writes
benchmarks/results/shared_expert-<date>.{json,md} after every seed; finished trainings in --work are reused.
"""

import argparse
import time
from typing import Any

import torch

from benchmarks.real_text_arguments import real_text_parser
from benchmarks.results_file import machine, write_results
from benchmarks.shared_expert.measurement import AFTER_SWITCH, PURE, SWITCHING, Sums, figures, measure
from benchmarks.shared_expert.trainings import BATCH, LENGTH, RANK, SHARED_RANK, Bench


def main() -> None:
    """Seed by seed."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    started_at = time.monotonic()

    def say(message: str) -> None:
        told = f"[{time.monotonic() - started_at:6.0f} s, {time.process_time():5.0f} of the processor]"
        print(told, message, flush=True)

    seeds: dict[int, Sums] = {}
    for seed in arguments.seeds:
        bench = Bench(
            arguments.shared,
            arguments.work,
            seed=seed,
            steps=arguments.steps,
            multi_task_rate=arguments.multi_task_learning_rate,
        )
        arms = bench.train(say)
        say(f"seed {seed}: reading held-out text")
        seeds[seed] = measure(bench, arms)
        _write(arguments, seeds, num_domains=len(bench.domains))


def _write(arguments: argparse.Namespace, seeds: dict[int, Sums], *, num_domains: int) -> None:
    found = figures(seeds)
    command = (
        f"python -m benchmarks.shared_expert --seeds {' '.join(map(str, seeds))} --steps {arguments.steps} "
        f"--multi-task-learning-rate {arguments.multi_task_learning_rate:g}"
    )
    num_tokens = num_domains * arguments.steps * BATCH * LENGTH
    about = (
        f"`{command}`: every arm reads {num_tokens / 1e6:.2f} million training tokens; shared expert of rank "
        f"{SHARED_RANK} on half of them, then {num_domains} experts of rank {RANK} on top of it on the other half; "
        f"multi-task adapter of rank {SHARED_RANK + num_domains * RANK}; plain experts of rank {RANK}. Nats per token; "
        "in brackets 95 %, bootstrap over documents."
    )
    write_results(
        arguments.results / "shared_expert",
        title="A shared expert under domain experts",
        about=about,
        machine=machine(),
        table=_tables(found),
        figures={"command": command, "seeds": list(seeds), **found},
    )


def _tables(found: dict[str, Any]) -> str:
    parts = (PURE, SWITCHING, AFTER_SWITCH)
    blocks = []
    for kind, signed in (("losses", False), ("differences", True)):
        head = [
            "system" if kind == "losses" else "difference (below zero: the first is better)",
            *parts,
            "by seed, pure",
        ]
        rows = [head, ["---"] * len(head)]
        for name in found[kind][PURE]:
            cells = [_spread(found[kind][part][name]["mean"], signed=signed) for part in parts]
            by_seed = ", ".join(f"{one:{'+' if signed else ''}.3f}" for one in found[kind][PURE][name]["by_seed"])
            rows.append([name, *cells, by_seed])
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(blocks)


def _spread(values: list[float], *, signed: bool) -> str:
    sign = "+" if signed else ""
    value, low, high = values
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _arguments() -> argparse.Namespace:
    parser = real_text_parser("shared_expert", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=160, help="per plain expert; multi-task gets five times as many")
    parser.add_argument("--multi-task-learning-rate", type=float, default=3e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
