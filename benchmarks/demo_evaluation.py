"""The demo release under an evaluation job's own code, on generated text that its experts never saw.

    python -m benchmarks.demo_evaluation [--seeds 0 1 2] [--documents 48] [--peers arrow x_lora multi_task]

Domains that the demo keeps back are the text of no known domain. Peers are trained on the very items that the experts
were trained on, once for each of --peer-seeds (by default all seeds); the multi-task adapter takes as many steps as all
of them together, which is most of the time. Writes benchmarks/results/demo_evaluation-<date>/; what has been trained
and read is kept in --work, so an interrupted run goes on.
"""

import argparse
import shutil
from datetime import UTC, datetime
from pathlib import Path

import torch

from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.router_artifact import read_router_file
from services.shared.publishing import EXEMPLARS_FILE, add_evidence
from services.shared.schemas.evaluation import EvaluationJobSpec, MultiTaskTraining, XLoraTraining
from services.shared.training_text import read_examples
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, HELD_BACK_DOMAINS
from services.trainer_worker.demo.experts import as_example
from services.trainer_worker.demo.plan import DEFAULT_SEED, ExpertPlan
from services.trainer_worker.evaluation.artifact import write_artifact
from services.trainer_worker.evaluation.evaluator import evaluate
from services.trainer_worker.evaluation.held_out import columns_of, in_order
from services.trainer_worker.evaluation.report import headline
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.evaluation.windows import Streams
from services.trainer_worker.progress import RunControl, TrainingProgress

_ITEMS_SEED = 7
_NO_FILE = f"file-{'0' * 32}"


def main() -> None:
    """Evaluate and write the report."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    plan = ExpertPlan()
    spec = EvaluationJobSpec(
        held_out=dict.fromkeys(DEMO_DOMAINS, _NO_FILE),
        seeds=tuple(arguments.seeds),
        max_documents=arguments.documents,
        max_switching_documents=2 * arguments.documents,
        peers=tuple(arguments.peers),
        peer_seeds=tuple(arguments.peer_seeds) if arguments.peer_seeds else None,
        training_files=dict.fromkeys(DEMO_DOMAINS, _NO_FILE),
        multi_task=MultiTaskTraining(
            max_steps=arguments.multi_task_steps,
            learning_rate=plan.learning_rate,
            batch_size=plan.batch_size,
            max_length=plan.block_length,
        ),
        x_lora=XLoraTraining(num_steps=arguments.x_lora_steps, learning_rate=3e-3),
    )
    training = {
        name: [as_example(item) for item in DOMAINS[name].generate(DEFAULT_SEED, plan.items_for(name), "train")]
        for name in DEMO_DOMAINS
    }
    subject = demo_subject(arguments.demo, arguments.work)
    columns = columns_of(DEMO_DOMAINS, [(name, None) for name, _ in subject.experts])
    number = 3 * arguments.documents
    held_out = {name: _streams(subject, name, number) for name in columns}
    unknown = [ids for name in HELD_BACK_DOMAINS for ids in _streams(subject, name, arguments.documents)]
    study = Study(
        subject,
        in_order(columns, held_out, unknown),
        spec,
        fresh_model=lambda: _base(arguments.demo).model,
        training={name: training[name] for name in columns},
    )
    measured = evaluate(study, RunControl(arguments.work, _say, lambda: False))
    figures = {
        "release": "demo",
        "base_model": "demo",
        "experts": [name for name, _ in subject.experts],
        "router_kind": read_router_file(subject.router_dir).kind.value,
        "graph": None,
    } | measured
    write_artifact(figures, arguments.results / f"demo_evaluation-{datetime.now(UTC):%Y-%m-%d}")
    print(headline(figures))


def demo_subject(demo: Path, work: Path) -> Subject:
    """The demo's experts with the evidence that they get when the demo is first started."""
    base = _base(demo)
    experts = []
    for name in DEMO_DOMAINS:
        folder = work / "experts" / name
        if not folder.exists():
            partial = work / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(demo / "experts" / name, partial)
            exemplars = read_examples(partial / EXEMPLARS_FILE, filename=EXEMPLARS_FILE)
            add_evidence(partial, examples=exemplars, tokenizer=base.tokenizer)
            folder.parent.mkdir(exist_ok=True)
            partial.rename(folder)
        experts.append((name, folder))
    return Subject(base, experts, demo / "router", None)


def _base(demo: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(demo / "base"), device="cpu"))


def _streams(subject: Subject, domain: str, number: int) -> Streams:
    items = DOMAINS[domain].generate(_ITEMS_SEED, number, "held_out")
    return subject.base.tokenizer.encode_batch([item.text for item in items])


def _say(progress: TrainingProgress) -> None:
    if progress.step % 50 == 0:
        print(f"{progress.step} of {progress.total_steps}, {progress.seconds_left:.0f} s left", flush=True)


def _arguments() -> argparse.Namespace:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, default=root / "demo")
    parser.add_argument("--work", type=Path, default=Path(".state/demo_evaluation"))
    parser.add_argument("--results", type=Path, default=root / "benchmarks/results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--documents", type=int, default=48, help="per domain and seed; twice as many switch")
    parser.add_argument("--peers", nargs="*", default=["arrow", "x_lora", "multi_task"])
    parser.add_argument("--peer-seeds", type=int, nargs="+", help="of their trainings; default: --seeds")
    parser.add_argument("--x-lora-steps", type=int, default=300)
    parser.add_argument(
        "--multi-task-steps",
        type=int,
        default=sum(map(ExpertPlan().steps_for, DEMO_DOMAINS)),
        help="default: those of all experts",
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
