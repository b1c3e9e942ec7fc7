"""Does routing keep what the experts gained? Real text, stories260K, everything through the product's own code.

    python -m benchmarks.routing_quality [--seeds 0 1 2] [--shared ../shared]

Trains one expert per domain and one multi-task adapter of equal total rank per seed (finished trainings in --work are
reused), reads held-out text under every system and writes benchmarks/results/routing_quality-<date>.{json,md}.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.real_text_arguments import real_text_parser
from benchmarks.routing_quality.measurement import Measurement, measure
from benchmarks.routing_quality.report import figures_of, machine, markdown
from benchmarks.routing_quality.workbench import Scale, Workbench
from services.trainer_worker.training.graph_plan import GraphPlan


def main() -> None:
    """Measure the seeds one after the other and write the report."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    started_at = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - started_at:6.0f} s] {message}", flush=True)

    measurements = [_measure(arguments, seed, say) for seed in arguments.seeds]
    seeds = [figures_of(measurement) for measurement in measurements]
    minutes = (time.monotonic() - started_at) / 60
    stem = f"routing_quality-{datetime.now(UTC):%Y-%m-%d}"
    header = (
        "# Routing quality on real text\n\n"
        f"`{_command(arguments)}`, {minutes:.0f} min (trainings that were there reused). {machine()}\n\n"
    )
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{stem}.md").write_text(header + markdown(seeds, measurements[0].graph))
    document = {"command": _command(arguments), "minutes": minutes, "machine": machine(), "seeds": seeds}
    (arguments.results / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    say(f"wrote {stem}.md and {stem}.json")


def _measure(arguments: argparse.Namespace, seed: int, say: Callable[[str], None]) -> Measurement:
    is_first = seed == arguments.seeds[0]
    scale = Scale(expert_steps=arguments.steps, graph=GraphPlan() if is_first and not arguments.no_graph else None)
    shared: Path = arguments.shared
    bench = Workbench(shared / "models/stories260K-hf", shared / "data/text", arguments.work, seed=seed, scale=scale)
    return measure(bench, say)


def _command(arguments: argparse.Namespace) -> str:
    seeds = " ".join(str(seed) for seed in arguments.seeds)
    return f"python -m benchmarks.routing_quality --seeds {seeds} --steps {arguments.steps}"


def _arguments() -> argparse.Namespace:
    parser = real_text_parser("routing_quality", __doc__, seeds=[0])
    parser.add_argument("--steps", type=int, default=300, help="per expert; multi-task gets five times as many")
    parser.add_argument("--no-graph", action="store_true", help="leave out the cooperation graph and its controls")
    return parser.parse_args()


if __name__ == "__main__":
    main()
