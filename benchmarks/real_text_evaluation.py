"""Experts on real text at stories260K under an evaluation job's own code, beside PEFT Arrow, X-LoRA and one adapter.

    python -m benchmarks.real_text_evaluation [--seeds 0 1 2] [--steps 80] [--shared ../shared]

One expert per domain is trained, with one training seed. Peers are trained on the experts' own text, once for each of
--peer-seeds (by default all seeds, which draw the documents): the multi-task adapter has the rank and takes the steps
of all experts together, X-LoRA's classifier takes --x-lora-steps on top of the experts. Questions and instructions are
the text of no known domain. Writes benchmarks/results/real_text_evaluation-<date>/; what has been trained and read is
kept in --work, so an interrupted run goes on.
"""

import argparse

import torch

from benchmarks.evaluation_run import add_evaluation_arguments, evaluate_and_report, specification
from benchmarks.real_text_arguments import real_text_parser
from benchmarks.router_studies.corpora import instructions, questions
from benchmarks.routing_quality.experts import MULTI_TASK_LEARNING_RATE, RANK, hyperparameters
from benchmarks.routing_quality.workbench import Scale, Workbench
from services.shared.config import Settings
from services.shared.modeling.base_model import load_base_model
from services.shared.schemas.evaluation import EvaluationJobSpec, MultiTaskTraining
from services.shared.training_text import Example
from services.shared.vocabulary import model_name
from services.trainer_worker.evaluation.held_out import columns_of, in_order
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.subject import Subject


def main() -> None:
    """Train the experts, evaluate and write the report."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    texts = arguments.shared / "data/text"
    bench = Workbench(
        arguments.shared / "models/stories260K-hf",
        texts,
        arguments.work,
        seed=arguments.expert_seed,
        scale=Scale(expert_steps=arguments.steps),
    )
    bench.train_experts(lambda message: print(message, flush=True))
    bench.write_bayes_routers()
    encode = bench.base.tokenizer.encode_batch
    columns = columns_of(bench.names, [(name, None) for name in bench.names])
    held_out = {domain.name: encode(domain.held_out) for domain in bench.domains}
    unknown = encode([*questions(texts), *instructions(texts)])
    study = Study(
        Subject(bench.base, bench.adapters, bench.folder / "bigram", None),
        in_order(columns, held_out, unknown),
        _specification(arguments, bench.names),
        fresh_model=lambda: load_base_model(Settings(base_model=bench.base.name, device="cpu")).model,
        training={domain.name: [Example(text, None) for text in domain.train] for domain in bench.domains},
    )
    evaluate_and_report(
        study,
        arguments,
        benchmark="real_text_evaluation",
        release=f"five experts on real text, {arguments.steps} steps each",
        base_model=model_name(bench.base.name),
    )


def _specification(arguments: argparse.Namespace, names: list[str]) -> EvaluationJobSpec:
    """Systems alone: other gates, filters and newcomers on this text are router_studies' and routing_quality's."""
    expert = hyperparameters(arguments.steps, rank=RANK, seed=arguments.expert_seed)
    return specification(
        arguments,
        names,
        multi_task=MultiTaskTraining(
            max_steps=len(names) * arguments.steps,
            learning_rate=MULTI_TASK_LEARNING_RATE,
            batch_size=expert.batch_size,
            max_length=expert.max_length,
        ),
        thresholds=(),
        top_ks=(),
        stickinesses=(),
        tempers=(),
        without_each=False,
    )


def _arguments() -> argparse.Namespace:
    parser = real_text_parser("real_text_evaluation", __doc__, seeds=[0, 1, 2], threads=1)
    parser.add_argument("--steps", type=int, default=80, help="per expert; multi-task gets five times as many")
    parser.add_argument("--expert-seed", type=int, default=0, help="of the experts' training and the text's split")
    add_evaluation_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
