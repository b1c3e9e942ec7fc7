"""The demo release under an evaluation job's own code, on generated text that its experts never saw.

    python -m benchmarks.demo_evaluation [--seeds 0 1 2] [--documents 48] [--peers arrow x_lora multi_task]

Domains that the demo keeps back are the text of no known domain. Peers are trained on the very items that the experts
were trained on, once for each of --peer-seeds (by default all seeds); the multi-task adapter takes as many steps as all
of them together, which is most of the time. Writes benchmarks/results/demo_evaluation-<date>/; what has been trained
and read is kept in --work, so an interrupted run goes on.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.evaluation_run import add_evaluation_arguments, evaluate_and_report, specification
from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.schemas.evaluation import MultiTaskTraining
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, HELD_BACK_DOMAINS
from services.trainer_worker.demo.experts import as_example
from services.trainer_worker.demo.plan import DEFAULT_SEED, ExpertPlan
from services.trainer_worker.demo.subject import demo_subject
from services.trainer_worker.evaluation.held_out import columns_of, in_order
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.evaluation.windows import Streams

_ITEMS_SEED = 7


def main() -> None:
    """Evaluate and write the report."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    plan = ExpertPlan()
    spec = specification(
        arguments,
        DEMO_DOMAINS,
        multi_task=MultiTaskTraining(
            max_steps=arguments.multi_task_steps,
            learning_rate=plan.learning_rate,
            batch_size=plan.batch_size,
            max_length=plan.block_length,
        ),
    )
    training = {
        name: [as_example(item) for item in DOMAINS[name].generate(DEFAULT_SEED, plan.items_for(name), "train")]
        for name in DEMO_DOMAINS
    }
    subject = demo_subject(arguments.demo, arguments.work)
    columns = columns_of(DEMO_DOMAINS, [(name, None) for name, _ in subject.experts])
    held_out = {name: _streams(subject, name, 3 * arguments.documents) for name in columns}
    unknown = [ids for name in HELD_BACK_DOMAINS for ids in _streams(subject, name, arguments.documents)]
    study = Study(
        subject,
        in_order(columns, held_out, unknown),
        spec,
        fresh_model=lambda: _base(arguments.demo).model,
        training={name: training[name] for name in columns},
    )
    evaluate_and_report(study, arguments, benchmark="demo_evaluation", release="demo", base_model="demo")


def _base(demo: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(demo / "base"), device="cpu"))


def _streams(subject: Subject, domain: str, number: int) -> Streams:
    items = DOMAINS[domain].generate(_ITEMS_SEED, number, "held_out")
    return subject.base.tokenizer.encode_batch([item.text for item in items])


def _arguments() -> argparse.Namespace:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, default=root / "demo")
    parser.add_argument("--work", type=Path, default=Path(".state/demo_evaluation"))
    parser.add_argument("--results", type=Path, default=root / "benchmarks/results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--multi-task-steps",
        type=int,
        default=sum(map(ExpertPlan().steps_for, DEMO_DOMAINS)),
        help="default: those of all experts",
    )
    parser.add_argument("--threads", type=int, default=2)
    add_evaluation_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
