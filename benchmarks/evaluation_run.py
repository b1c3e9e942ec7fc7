"""What benchmarks share that read held-out text by an evaluation job's own code."""

import argparse
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.results_file import machine
from services.shared.modeling.router_artifact import read_router_file
from services.shared.schemas.evaluation import EvaluationJobSpec, MultiTaskTraining, XLoraTraining
from services.trainer_worker.evaluation.artifact import write_artifact
from services.trainer_worker.evaluation.evaluator import evaluate
from services.trainer_worker.evaluation.report import headline
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.progress import RunControl, TrainingProgress

_NO_FILE: Final = f"file-{'0' * 32}"


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Beside the benchmark's own --work, --results and --seeds."""
    parser.add_argument("--documents", type=int, default=48, help="per domain and seed; twice as many switch")
    parser.add_argument("--peers", nargs="*", default=["arrow", "x_lora", "multi_task"])
    parser.add_argument("--peer-seeds", type=int, nargs="+", help="of their trainings; default: --seeds")
    parser.add_argument("--x-lora-steps", type=int, default=300)


def specification(
    arguments: argparse.Namespace, domains: Iterable[str], *, multi_task: MultiTaskTraining, **others: Any
) -> EvaluationJobSpec:
    """What a job would be sent; `others` are further fields of it."""
    files = dict.fromkeys(domains, _NO_FILE)
    return EvaluationJobSpec(
        held_out=files,
        seeds=tuple(arguments.seeds),
        max_documents=arguments.documents,
        max_switching_documents=2 * arguments.documents,
        peers=tuple(arguments.peers),
        peer_seeds=tuple(arguments.peer_seeds) if arguments.peer_seeds else None,
        training_files=files,
        multi_task=multi_task,
        x_lora=XLoraTraining(num_steps=arguments.x_lora_steps, learning_rate=3e-3),
        **others,
    )


def evaluate_and_report(
    study: Study, arguments: argparse.Namespace, *, benchmark: str, release: str, base_model: str
) -> None:
    """Write <results>/<benchmark>-<date>/. What has been trained and read is kept in --work: an interrupted run goes
    on, and further seeds or peers join those that are there."""
    run = RunControl(arguments.work / f"evaluation-{_digest(study.spec)}", _say, lambda: False)
    measured = evaluate(study, run)
    figures = {
        "release": release,
        "base_model": base_model,
        "experts": [name for name, _ in study.subject.experts],
        "router_kind": read_router_file(study.subject.router_dir).kind.value,
        "graph": None,
        "machine": machine(),
    } | measured
    write_artifact(figures, arguments.results / f"{benchmark}-{datetime.now(UTC):%Y-%m-%d}")
    print(headline(figures))


def _digest(spec: EvaluationJobSpec) -> str:
    """Of all but further seeds and peers: kept readings are known by the names of their documents and systems alone."""
    decisive = f"{spec.seeds[0]}{spec.model_dump_json(exclude={'seeds', 'peers'})}"
    return hashlib.sha256(decisive.encode()).hexdigest()[:8]


def _say(progress: TrainingProgress) -> None:
    if progress.step % 50 == 0 and progress.seconds_left is not None:
        told = f"{progress.phase}: {progress.step} of {progress.total_steps}, {progress.seconds_left:.0f} s left"
        print(told + (f", loss {progress.loss:.3f}" if progress.loss is not None else ""), flush=True)
