"""What else could be done with the same experts or the same text: PEFT Arrow, PEFT X-LoRA, one multi-task adapter."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from peft import PeftModel
from peft.tuners.lora import ArrowConfig, create_arrow_model
from torch import Tensor, nn

from services.shared.errors import JobFailed
from services.shared.modeling.adapter_config import read_lora_settings
from services.shared.schemas.evaluation import EvaluationJobSpec, PeerName
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.trainer_worker.datasets import split_examples
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.systems import Weigh, constant
from services.trainer_worker.progress import RunControl
from services.trainer_worker.training.expert import train_expert
from services.trainer_worker.training.expert_ensemble import next_token_nats
from services.trainer_worker.training.x_lora import train_x_lora

NOBODYS: Final[Weigh] = constant(())
"""Peers decide by themselves, so they are given no weights."""
_VALIDATION_FRACTION: Final = 0.05
_LARGEST_RANK: Final = 256


@dataclass(frozen=True)
class Peer:
    """A system with a model of its own."""

    model: nn.Module

    def nats(self, token_ids_BT: Tensor, weights_BTE: Tensor, *, only_speaking: bool = False) -> Tensor:
        """-log p of every token but the first, [B, T-1]; the weights are `NOBODYS`."""
        token_ids_BT = token_ids_BT.to(next(self.model.parameters()).device)
        return next_token_nats(self.model(input_ids=token_ids_BT).logits, token_ids_BT)


@dataclass(frozen=True)
class PeerKind:
    """What reports call a peer, how it is made, in words, and the seeds that it is trained with: none, or several."""

    name: str
    about: str
    seeds: tuple[int, ...] = ()


class PeerMaker:
    """Makes peers of a release's experts, one at a time; trainings go on from what the run's folder holds.

    Raises TrainingStopped within a step of `should_stop()`.
    """

    def __init__(self, study: Study, run: RunControl) -> None:
        self._study = study
        self._run = run
        self._experts = [folder for _, folder in study.subject.experts]

    def kind(self, name: PeerName) -> PeerKind:
        """Without making it. Raises JobFailed for a multi-task adapter of more rank than is trained."""
        spec = self._study.spec
        seeds = spec.each_peer_seed
        with_seeds = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        match name:
            case "arrow":
                about = f"PEFT Arrow over the same experts, top {self._arrow_top_k()}, nothing trained"
                return PeerKind("PEFT Arrow", about)
            case "x_lora":
                steps = f"{spec.x_lora.num_steps} steps of {spec.x_lora.batch_size} documents, {with_seeds}"
                about = f"PEFT X-LoRA over the same experts, its classifier trained for {steps}"
                return PeerKind("PEFT X-LoRA", about, seeds)
            case "multi_task":
                adapter = f"multi-task LoRA, rank {multi_task_hyperparameters(spec, self._experts).rank}"
                most, epochs = spec.multi_task.max_steps, spec.multi_task.num_epochs
                steps = f"{most} steps" if most else f"{epochs:g} epochs in steps"
                about = f"{adapter}, trained on all text at once for {steps} of {spec.multi_task.batch_size} blocks"
                return PeerKind(adapter, f"{about}, {with_seeds}", seeds)

    def make(self, name: PeerName, seed: int) -> Peer:
        """Raises JobFailed where PEFT cannot do it with these experts."""
        with _quiet_transformers():
            match name:
                case "arrow":
                    return self._arrow(seed)
                case "x_lora":
                    return self._x_lora(seed)
                case "multi_task":
                    return self._multi_task(seed)

    def _arrow_top_k(self) -> int:
        """As many experts as our gate keeps."""
        return min(self._study.subject.scorer().gate.max_experts, len(self._experts))

    def _arrow(self, seed: int) -> Peer:
        """Routes every layer by the experts' own singular vectors (arXiv:2405.11157)."""
        folders = [str(folder) for folder in self._experts]
        config = ArrowConfig(top_k=self._arrow_top_k(), rng_seed=seed)
        try:
            model = create_arrow_model(self._study.fresh_model(), folders, config)
        except (ValueError, TypeError) as error:
            raise JobFailed(
                f"PEFT Arrow cannot put these experts side by side ({error}): leave arrow out of peers.",
                code="peer_impossible",
            ) from error
        return Peer(model.eval())

    def _x_lora(self, seed: int) -> Peer:
        base, training = self._study.subject.base, self._study.spec.x_lora
        model = train_x_lora(
            self._study.fresh_model(),
            self._experts,
            [
                base.tokenizer.encode_batch([example.text for example in examples])
                for examples in self._study.training.values()
            ],
            training.model_copy(update={"max_length": min(training.max_length, base.max_context)}),
            seed=seed,
            run=self._run.within(f"x_lora-{seed}"),
        )
        return Peer(model)

    def _multi_task(self, seed: int) -> Peer:
        run = self._run.within(f"multi_task-{seed}")
        every = [example for examples in self._study.training.values() for example in examples]
        train, validation = split_examples(every, fraction=_VALIDATION_FRACTION, seed=seed)
        hyperparameters = multi_task_hyperparameters(self._study.spec, self._experts)
        training = train_expert(
            base_model=self._study.subject.base.name,
            train=train,
            validation=validation,
            hyperparameters=hyperparameters.model_copy(update={"seed": seed}),
            output_dir=run.folder,
            on_progress=lambda progress: run.on_progress(replace(progress, phase="training the multi-task adapter")),
            should_stop=run.should_stop,
        )
        return Peer(PeftModel.from_pretrained(self._study.fresh_model(), str(training.adapter_dir)).eval())


def multi_task_hyperparameters(spec: EvaluationJobSpec, experts: Sequence[Path]) -> ExpertHyperparameters:
    """The rank of all experts together, their mean scaling, and the modules that any of them adapts."""
    adapters = [read_lora_settings(folder) for folder in experts]
    rank = sum(adapter.rank for adapter in adapters)
    if rank > _LARGEST_RANK:
        raise JobFailed(
            f"One adapter of the rank of all experts together would have rank {rank}; at most {_LARGEST_RANK} is "
            "trained: leave multi_task out of peers.",
            code="peer_impossible",
        )
    scaling = np.mean(
        [one.alpha / (math.sqrt(one.rank) if one.use_rslora else one.rank) for one in adapters], dtype=float
    )
    targets = [adapter.target_modules for adapter in adapters]
    named = {name for target in targets if isinstance(target, frozenset) for name in target}
    all_named = all(isinstance(target, frozenset) for target in targets)
    training = spec.multi_task
    return ExpertHyperparameters(
        rank=rank,
        alpha=float(rank * scaling),
        dropout=0.0,
        target_modules=tuple(sorted(named)) if all_named else "all-linear",
        early_stopping_patience=0,
        **training.model_dump(),
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """PEFT asks transformers by a name that transformers has given up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
