"""Train a learned router through the mixture: the task's own loss decides who should speak (DESIGN D2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from services.shared.config import RouterSettings
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.router_artifact import write_learned_router
from services.shared.schemas.jobs import RouterHyperparameters
from services.shared.vocabulary import BASE
from services.trainer_worker.progress import StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
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
) -> RouterTraining:
    """Train over the experts' texts (and the base model's own, sampled) and write `output_dir/router`.

    Every column speaks while training, since a single kept gate has no gradient; the gate is applied afterwards.
    Raises TrainingStopped within one step of `should_stop()`, InvalidDataset for an expert without text.
    """
    torch.manual_seed(hyperparameters.seed)
    num_steps = hyperparameters.num_steps
    on_progress(TrainingProgress("preparing", step=0, total_steps=num_steps))
    train_splicer, test_splicer = _splicers(base, experts, texts, hyperparameters)
    with ExpertEnsemble.load(base, experts) as ensemble:
        trainer = RouterTrainer(ensemble, settings, hyperparameters)
        trainer.fit_input_scale(train_splicer)
        clock, taken = StepClock(0), list[RouterStep]()
        for step in trainer.steps(train_splicer):
            taken.append(step)
            if should_stop():
                raise TrainingStopped("the router's training was stopped")
            on_progress(
                TrainingProgress(
                    "training",
                    step=len(taken),
                    total_steps=num_steps,
                    loss=step.loss,
                    learning_rate=hyperparameters.learning_rate,
                    seconds_left=clock.seconds_left(len(taken), num_steps),
                )
            )
        on_progress(TrainingProgress("evaluating", step=num_steps, total_steps=num_steps))
        judgement = _finish(trainer, test_splicer, hyperparameters.batch_size, output_dir / "router")
    return RouterTraining(
        router_dir=output_dir / "router",
        judgement=judgement,
        load_balance=taken[-1].load_balance,
        num_overflow=sum(step.num_overflow for step in taken),
        num_steps=len(taken),
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
