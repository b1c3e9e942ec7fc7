"""One expert per domain and one multi-task adapter of equal total rank, trained by the worker's own code."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.routing_quality.texts import DomainText
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.base_row import sample_base_text
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER, TRUNK_FILE
from services.shared.modeling.trunk import gather_trunk_statistics
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.training.expert import train_expert

MULTI_TASK = "multi-task"
RANK = 8
EXPERT_LEARNING_RATE = 1e-2
MULTI_TASK_LEARNING_RATE = 3e-3
VALIDATION_PASSAGES = 24
TAP_LAYER = 1
GENERIC_TOKENS = 50_000


def hyperparameters(num_steps: int, *, rank: int, seed: int) -> ExpertHyperparameters:
    """The same for all but for rank, steps and learning rate; alpha is twice the rank.

    The multi-task adapter has five times the rank and diverges at the experts' learning rate (docs/EXPERIMENTS.md).
    """
    return ExpertHyperparameters(
        rank=rank,
        alpha=2.0 * rank,
        dropout=0.0,
        learning_rate=EXPERT_LEARNING_RATE if rank == RANK else MULTI_TASK_LEARNING_RATE,
        lr_scheduler="cosine",
        batch_size=8,
        max_length=256,
        max_steps=num_steps,
        eval_steps=max(num_steps // 4, 1),
        early_stopping_patience=0,
        seed=seed,
    )


def train_adapter(  # noqa: PLR0913
    name: str, domains: Sequence[DomainText], *, base_model: str, num_steps: int, rank: int, seed: int, folder: Path
) -> Path:
    """Train an adapter on these domains together; returns its PEFT folder. Finished trainings are reused."""
    train = [Example(text, None) for domain in domains for text in domain.train]
    validation = [Example(text, None) for domain in domains for text in domain.validation[:VALIDATION_PASSAGES]]

    training = train_expert(
        base_model=base_model,
        train=train,
        validation=validation,
        hyperparameters=hyperparameters(num_steps, rank=rank, seed=seed),
        output_dir=folder / name,
        on_progress=lambda progress: None,
        should_stop=lambda: False,
    )
    return training.adapter_dir


def write_evidence(adapter_dir: Path, texts: Sequence[str], base: LoadedBase, generic: Sequence[Sequence[int]]) -> None:
    """Put the expert's evidence beside its weights, as a published version has it."""
    streams = base.tokenizer.encode_batch(texts)
    evidence = build_bigram_evidence(streams, base.tokenizer.vocab_size)
    evidence.save(adapter_dir / EVIDENCE_FOLDER / BIGRAM_FILE)
    statistics = gather_trunk_statistics(base.model, streams, tap_layer=TAP_LAYER, prefixes=generic)
    statistics.save(adapter_dir / EVIDENCE_FOLDER / TRUNK_FILE)


def generic_text(base: LoadedBase) -> list[list[int]]:
    """What the base model writes by itself."""
    return sample_base_text(base.model, base.tokenizer, num_tokens=GENERIC_TOKENS, seed=0)
