"""What else could be done with the same experts or the same text: PEFT Arrow, PEFT X-LoRA, one multi-task adapter."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from peft import PeftModel
from peft.tuners.lora import ArrowConfig, create_arrow_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.shared.errors import JobFailed
from services.shared.modeling.adapter_config import read_lora_settings
from services.shared.schemas.evaluation import EvaluationJobSpec, PeerName
from services.shared.schemas.jobs import ExpertHyperparameters
from services.trainer_worker.datasets import split_examples
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.evaluation.systems import Weigh, constant
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert import train_expert
from services.trainer_worker.training.expert_ensemble import next_token_nats
from services.trainer_worker.training.x_lora import train_x_lora

if TYPE_CHECKING:
    from services.shared.training_text import Example

FreshModel = Callable[[], PreTrainedModel]
"""Loads the bare base model anew, for a peer to take apart."""

NOBODYS: Final[Weigh] = constant(())
"""Peers decide by themselves, so they are given no weights."""
_VALIDATION_FRACTION: Final = 0.05
_LARGEST_RANK: Final = 256


@dataclass(frozen=True)
class Peer:
    """A system with a model of its own, and how it was made, in words."""

    name: str
    about: str
    model: nn.Module

    def nats(self, token_ids_BT: Tensor, weights_BTE: Tensor, *, only_speaking: bool = False) -> Tensor:
        """-log p of every token but the first, [B, T-1]; the weights are `NOBODYS`."""
        token_ids_BT = token_ids_BT.to(next(self.model.parameters()).device)
        return next_token_nats(self.model(input_ids=token_ids_BT).logits, token_ids_BT)


class PeerMaker:
    """Makes peers of a release's experts, one at a time; trainings go on from what `folder` holds.

    `training` is every domain's text in the order of the gate's columns. Raises TrainingStopped within a step of
    `should_stop()`.
    """

    def __init__(  # noqa: PLR0913
        self,
        subject: Subject,
        spec: EvaluationJobSpec,
        training: "Mapping[str, Sequence[Example]]",
        *,
        fresh_model: FreshModel,
        folder: Path,
        on_progress: Callable[[TrainingProgress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._subject = subject
        self._spec = spec
        self._training = training
        self._fresh_model = fresh_model
        self._folder = folder
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._experts = [folder for _, folder in subject.experts]

    def make(self, name: PeerName) -> Peer:
        """Raises JobFailed where PEFT cannot do it with these experts."""
        with _quiet_peft():
            match name:
                case "arrow":
                    return self._arrow()
                case "x_lora":
                    return self._x_lora()
                case "multi_task":
                    return self._multi_task()

    def _arrow(self) -> Peer:
        """Routes every layer by the experts' own singular vectors (arXiv:2405.11157); as many experts as our gate."""
        top_k = min(self._subject.scorer().gate.max_experts, len(self._experts))
        folders = [str(folder) for folder in self._experts]
        try:
            model = create_arrow_model(self._fresh_model(), folders, ArrowConfig(top_k=top_k))
        except (ValueError, TypeError) as error:
            raise JobFailed(
                f"PEFT Arrow cannot put these experts side by side ({error}): leave arrow out of peers.",
                code="peer_impossible",
            ) from error
        return Peer("PEFT Arrow", f"PEFT Arrow over the same experts, top {top_k}, nothing trained", model.eval())

    def _x_lora(self) -> Peer:
        encode = self._subject.base.tokenizer.encode_batch
        training = self._spec.x_lora
        model = train_x_lora(
            self._fresh_model(),
            self._experts,
            [encode([example.text for example in examples]) for examples in self._training.values()],
            training.model_copy(update={"max_length": self._within_context(training.max_length)}),
            seed=self._spec.seeds[0],
            folder=self._folder / "x_lora",
            on_progress=self._on_progress,
            should_stop=self._should_stop,
        )
        about = f"PEFT X-LoRA over the same experts, its classifier trained for {training.num_steps} steps of "
        return Peer("PEFT X-LoRA", f"{about}{training.batch_size} documents", model)

    def _multi_task(self) -> Peer:
        seed = self._spec.seeds[0]
        every = [example for examples in self._training.values() for example in examples]
        train, validation = split_examples(every, fraction=_VALIDATION_FRACTION, seed=seed)
        hyperparameters = multi_task_hyperparameters(self._spec, self._experts)
        training = train_expert(
            base_model=self._subject.base.name,
            train=train,
            validation=validation,
            hyperparameters=hyperparameters,
            output_dir=self._folder / "multi_task",
            on_progress=lambda progress: self._on_progress(replace(progress, phase="training the multi-task adapter")),
            should_stop=self._should_stop,
        )
        model = PeftModel.from_pretrained(self._fresh_model(), str(training.adapter_dir)).eval()
        name = f"multi-task LoRA, rank {hyperparameters.rank}"
        about = (
            f"{name}, trained on all text at once for {training.num_steps} steps of {hyperparameters.batch_size} blocks"
        )
        return Peer(name, about, model)

    def _within_context(self, max_length: int) -> int:
        return min(max_length, self._subject.base.max_context)


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
        seed=spec.seeds[0],
        **training.model_dump(),
    )


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT warns of several adapters at once, which is wanted here, and of names that transformers has changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
