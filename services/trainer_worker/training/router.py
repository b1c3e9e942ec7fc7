"""Train a learned router through the mixture: the task's own loss decides who should speak (DESIGN D2)."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from services.shared.config import RouterSettings
from services.shared.errors import JobFailed
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.router_artifact import write_learned_router
from services.shared.schemas.jobs import RouterHyperparameters
from services.shared.vocabulary import BASE
from services.trainer_worker.progress import StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.router_checkpoint import RouterCheckpoints, Totals
from services.trainer_worker.training.router_judge import Judgement, RouterJudge
from services.trainer_worker.training.router_trainer import RouterStep, RouterTrainer
from services.trainer_worker.training.spliced_documents import DocumentSplicer, split_streams

if TYPE_CHECKING:
    from services.shared.training_text import Example

_BASE_TEXT_TOKENS: Final = 8_000
_TEST_BATCHES: Final = 4
_HELD_OUT: Final = 0.1


@dataclass(frozen=True)
class RouterTraining:
    """A trained router: its artifact folder, how it did on held-out documents, and how its training went."""

    router_dir: Path
    judgement: Judgement
    load_balance: float
    num_overflow: int
    num_steps: int
    tokens_per_s: float
    """Of the attempt that ended it."""


def train_learned_router(  # noqa: PLR0913
    *,
    base: LoadedBase,
    experts: Sequence[tuple[str, Path]],
    texts: "Mapping[str, Sequence[Example]]",
    settings: RouterSettings,
    hyperparameters: RouterHyperparameters,
    output_dir: Path,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
    should_keep_state: Callable[[], bool] = lambda: False,
) -> RouterTraining:
    """Train over the experts' texts (and the base model's own, sampled) and write `output_dir/router`.

    Every column speaks while training, since a single kept gate has no gradient; the gate is applied afterwards.
    Called again with the same arguments after an interruption, it goes on from the last checkpoint and, on the CPU,
    ends with exactly the router of an uninterrupted run. Raises TrainingStopped within one step of `should_stop()`,
    after a checkpoint if `should_keep_state()`, InvalidDataset for an expert without text, JobFailed for a loss that
    left the finite numbers.
    """
    num_steps = hyperparameters.num_steps
    on_progress(TrainingProgress("preparing", step=0, total_steps=num_steps))
    inputs = _fingerprint(base, experts, texts, settings, hyperparameters)
    checkpoints = RouterCheckpoints(output_dir, inputs=inputs, total_steps=num_steps)
    torch.manual_seed(hyperparameters.seed)
    train_splicer, test_splicer = _splicers(base, experts, texts, hyperparameters)
    with ExpertEnsemble.load(base, experts) as ensemble:
        trainer = RouterTrainer(ensemble, settings, hyperparameters)
        totals = checkpoints.restore(trainer, train_splicer)
        if totals is None:
            trainer.fit_input_scale(train_splicer)
            totals = Totals()
        first_step, started_at = totals.num_steps, time.monotonic()
        clock = StepClock(first_step)
        step_tokens = hyperparameters.batch_size * min(hyperparameters.max_length, base.max_context)
        for step in trainer.steps(train_splicer, first_step=first_step):
            totals = totals.plus(step)
            _check_finite(step, totals.num_steps, hyperparameters)
            keep_state = should_keep_state()
            if keep_state or totals.num_steps == num_steps or checkpoints.is_due(totals.num_steps):
                checkpoints.save(trainer, train_splicer, totals)
            if keep_state or should_stop():
                raise TrainingStopped("the router's training was stopped")
            on_progress(
                TrainingProgress(
                    "training",
                    step=totals.num_steps,
                    total_steps=num_steps,
                    loss=step.loss,
                    learning_rate=hyperparameters.learning_rate,
                    seconds_left=clock.seconds_left(totals.num_steps, num_steps),
                    num_tokens=(totals.num_steps - first_step) * step_tokens,
                    figures={"load_balance": step.load_balance, "num_overflow": step.num_overflow},
                )
            )
        seconds = time.monotonic() - started_at
        on_progress(TrainingProgress("evaluating", step=num_steps, total_steps=num_steps))
        judgement = _finish(trainer, test_splicer, hyperparameters.batch_size, output_dir / "router")
    return RouterTraining(
        router_dir=output_dir / "router",
        judgement=judgement,
        load_balance=totals.load_balance,
        num_overflow=totals.num_overflow,
        num_steps=totals.num_steps,
        tokens_per_s=(num_steps - first_step) * step_tokens / max(seconds, 1e-9),
    )


def _finish(trainer: RouterTrainer, splicer: DocumentSplicer, batch_size: int, folder: Path) -> Judgement:
    """Set the level of the logits on some held-out documents, write the artifact, judge it on others."""
    batches = [splicer.draw(batch_size) for _ in range(2 * _TEST_BATCHES)]
    judge = RouterJudge(trainer)
    level = judge.best_level(batches[:_TEST_BATCHES])
    gate = trainer.network.to_gate()
    write_learned_router(
        folder,
        settings=trainer.settings,
        gate=replace(gate, score_bias_C=gate.score_bias_C + level),
        experts=trainer.ensemble.experts,
        hidden_size=trainer.hidden_size,
    )
    return judge.judge(batches[_TEST_BATCHES:], level)


def _splicers(
    base: LoadedBase,
    experts: Sequence[tuple[str, Path]],
    texts: "Mapping[str, Sequence[Example]]",
    hyperparameters: RouterHyperparameters,
) -> tuple[DocumentSplicer, DocumentSplicer]:
    """Training and held-out documents over the experts' columns and the base's."""
    streams: dict[str, Sequence[Sequence[int]]] = {
        name: base.tokenizer.encode_batch([example.text for example in texts.get(name, ())]) for name, _ in experts
    }
    seed = hyperparameters.seed
    streams[BASE] = sample_base_text(base.model, base.tokenizer, num_tokens=_BASE_TEXT_TOKENS, seed=seed)
    train, test = split_streams(streams, held_out=_HELD_OUT, seed=seed)
    length = min(hyperparameters.max_length, base.max_context)
    return (
        DocumentSplicer(list(train.values()), length=length, seed=seed),
        DocumentSplicer(list(test.values()), length=length, seed=seed + 1),
    )


def _check_finite(step: RouterStep, number: int, hyperparameters: RouterHyperparameters) -> None:
    """Raise JobFailed for a loss that training does not come back from."""
    if not math.isfinite(step.loss):
        raise JobFailed(
            f"The router's loss was no longer a finite number at step {number}: try a lower learning_rate (it was "
            f"{hyperparameters.learning_rate:g}).",
            code="loss_not_finite",
        )


def _fingerprint(
    base: LoadedBase,
    experts: Sequence[tuple[str, Path]],
    texts: "Mapping[str, Sequence[Example]]",
    settings: RouterSettings,
    hyperparameters: RouterHyperparameters,
) -> str:
    """SHA-256 of all that decides the result."""
    named = [base.fingerprint, settings.model_dump_json(), hyperparameters.model_dump_json()]
    named += [f"{name} {folder.name}" for name, folder in experts]
    digest = hashlib.sha256("\n".join(named).encode())
    for name, _ in experts:
        for example in texts.get(name, ()):
            digest.update(f"{len(example.text)}:{example.text}".encode())
        digest.update(b"|")
    return digest.hexdigest()
