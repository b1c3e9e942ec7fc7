"""Is a cooperation graph worth having over the demo's LoRA experts? A graph job's own code, with all its controls.

    python -m benchmarks.graph_study [--part frozen router experts] [--seeds 0 1 2 3 4] [--work DIR]

Documents are spliced of generated text that no expert was trained on; a fifth of it is held out to judge on. `frozen`
learns graphs over frozen experts and router beside every control; `router` and `experts` train those too, beside the
same training without a graph. Networks that have been trained are kept in --work, so an interrupted run goes on. Each
part writes its report with pictures to benchmarks/results/graph_study-<date>/<part>/.
"""

import argparse
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch

from benchmarks.results_file import machine
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.training_text import Example
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS
from services.trainer_worker.demo.subject import demo_subject
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.graph_artifact import headline, write_report
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.cooperation_graph import train_cooperation_graph
from services.trainer_worker.training.graph_plan import GraphPlan
from services.trainer_worker.training.graph_report import GraphReport

_ITEMS_SEED: Final = 11
_PLAN: Final = GraphPlan(
    # The demo's documents have about fifty tokens: most windows hold two or three.
    length=96,
    num_steps=40,
    batch_size=4,
    num_epochs=5,
    num_test_documents=96,
    l1_sweep=(0.0, 0.3),
    top_ks=(1, 2, 3),
)
_PARTS: Final = {
    "frozen": _PLAN,
    "router": replace(_PLAN, l1_sweep=(), top_ks=(), controls=False, joint=("router",)),
    "experts": replace(_PLAN, l1_sweep=(), top_ks=(), controls=False, joint=("experts",)),
}


def main() -> None:
    """Learn, judge and write the reports."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    subject = demo_subject(arguments.demo, arguments.work)
    for part in arguments.part:
        plan = replace(_PARTS[part], seeds=tuple(arguments.seeds), num_steps=arguments.steps)
        report = _study(subject, plan, arguments)
        folder = arguments.results / f"graph_study-{datetime.now(UTC):%Y-%m-%d}" / part
        shutil.rmtree(folder, ignore_errors=True)
        about = {
            "release": "the demo",
            "base_model": "demo",
            "l1": plan.l1,
            "command": f"python -m benchmarks.graph_study --part {part}",
            "machine": machine(),
        }
        write_report(report, folder, about=about, tokenizer=subject.base.tokenizer)
        print(f"{part}: {headline(report)}", flush=True)


def _study(subject: Subject, plan: GraphPlan, arguments: argparse.Namespace) -> GraphReport:
    scorer = ReleaseScorer.load(
        router_dir=subject.router_dir,
        graph_dir=None,
        experts=subject.experts,
        vocab_size=subject.base.tokenizer.vocab_size,
    )
    return train_cooperation_graph(
        base=subject.base,
        experts=subject.experts,
        scorer=scorer,
        max_experts=scorer.gate.max_experts,
        texts={
            name: [
                Example(item.text, None) for item in DOMAINS[name].generate(_ITEMS_SEED, arguments.items, "held_out")
            ]
            for name in DEMO_DOMAINS
        },
        plan=plan,
        folder=arguments.work / f"{plan.num_steps}x{plan.batch_size}x{plan.length}-{arguments.items}",
        on_progress=_say,
        should_stop=lambda: False,
    )


def _say(progress: TrainingProgress) -> None:
    if progress.step % 40 == 0:
        print(f"{progress.step} of {progress.total_steps}, {progress.seconds_left:.0f} s left", flush=True)


def _arguments() -> argparse.Namespace:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=tuple(_PARTS), default=list(_PARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=_PLAN.num_steps)
    parser.add_argument("--items", type=int, default=200, help="documents per domain, a fifth of them to judge on")
    parser.add_argument("--demo", type=Path, default=root / "demo")
    parser.add_argument("--work", type=Path, default=Path(".state/graph_study"))
    parser.add_argument("--results", type=Path, default=root / "benchmarks/results")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
