"""PEFT X-LoRA over given experts (Buehler and Buehler 2024, arXiv:2402.07148): what our routers are compared with."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel, XLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.shared.errors import JobFailed
from services.shared.modeling.trunk import hidden_size_of
from services.shared.schemas.evaluation import XLoraTraining
from services.trainer_worker.progress import RunControl, StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import next_token_nats
from services.trainer_worker.training.router_checkpoint import RouterCheckpoints, Totals
from services.trainer_worker.training.spliced_documents import DocumentSplicer
from services.trainer_worker.training.training_state import load_training_state, training_state

_LARGEST_GRADIENT = 1.0

Streams = Sequence[Sequence[int]]


def train_x_lora(
    model: PreTrainedModel,
    experts: Sequence[Path],
    streams: Sequence[Streams],
    training: XLoraTraining,
    *,
    seed: int,
    run: RunControl,
) -> PeftModel:
    """The model with all experts and a classifier trained to mix them, on documents spliced of `streams`.

    Takes `model` apart. Goes on from the last checkpoint in the run's folder; on the CPU it ends with exactly the
    classifier of an uninterrupted training. Raises TrainingStopped within one step of `should_stop()`, JobFailed for
    experts that PEFT cannot put side by side and for a loss that left the finite numbers.
    """
    trainer = _XLoraTrainer(model, experts, training, seed=seed)
    length = min(training.max_length, max(sum(map(len, documents)) for documents in streams))
    splicer = DocumentSplicer(streams, length=length, seed=seed)
    inputs = _fingerprint(experts, streams, training, seed)
    checkpoints = RouterCheckpoints(run.folder, inputs=inputs, total_steps=training.num_steps)
    totals = checkpoints.restore(trainer, splicer) or Totals()
    clock = StepClock(totals.num_steps)
    for step in range(totals.num_steps + 1, training.num_steps + 1):
        loss = trainer.step(splicer.draw(training.batch_size).token_ids_BT)
        totals = replace(totals, num_steps=step)
        if step == training.num_steps or checkpoints.is_due(step) or run.should_stop():
            checkpoints.save(trainer, splicer, totals)
        if run.should_stop():
            raise TrainingStopped("the training of X-LoRA was stopped")
        seconds_left = clock.seconds_left(step, training.num_steps)
        run.on_progress(TrainingProgress("training X-LoRA", step, training.num_steps, loss, seconds_left=seconds_left))
    return trainer.model


class _XLoraTrainer:
    """The experts as PEFT mixes them, and the optimiser of its classifier."""

    def __init__(self, model: PreTrainedModel, experts: Sequence[Path], training: XLoraTraining, *, seed: int) -> None:
        torch.manual_seed(seed)
        model.config.use_cache = False  # X-LoRA reads every token twice and refuses to keep keys and values
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=hidden_size_of(model),
            adapters={str(index): str(folder) for index, folder in enumerate(experts)},
        )
        try:
            mixed = get_peft_model(model, config)
        except (ValueError, RuntimeError, KeyError) as error:
            raise JobFailed(
                f"PEFT X-LoRA cannot put these experts side by side ({error}): leave x_lora out of peers.",
                code="peer_impossible",
            ) from error
        assert isinstance(mixed, PeftModel)
        # Not in training mode: the experts are finished, so they should drop nothing out.
        self.model = mixed.eval()
        classifier = mixed.base_model.internal_xlora_classifier
        assert isinstance(classifier, nn.Module)
        self._classifier = classifier.requires_grad_(requires_grad=True)
        self._optimizer = torch.optim.AdamW(self._classifier.parameters(), lr=training.learning_rate)

    def step(self, token_ids_BT: Tensor) -> float:
        """One optimiser step; its loss in nats per token."""
        token_ids_BT = token_ids_BT.to(self.model.device)
        loss = next_token_nats(self.model(input_ids=token_ids_BT).logits, token_ids_BT).mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise JobFailed(
                "X-LoRA's loss was no longer a finite number: try a lower x_lora.learning_rate.",
                code="loss_not_finite",
            )
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._classifier.parameters(), _LARGEST_GRADIENT)
        self._optimizer.step()
        return value

    def state(self) -> dict[str, Tensor]:
        """Classifier, optimiser and random state as named tensors."""
        return training_state(self._classifier, self._optimizer)

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        load_training_state(tensors, self._classifier, self._optimizer)


def _fingerprint(experts: Sequence[Path], streams: Sequence[Streams], training: XLoraTraining, seed: int) -> str:
    """SHA-256 of all that decides the result; experts lie in folders named by their content."""
    inputs = [
        [str(folder) for folder in experts],
        training.model_dump(),
        seed,
        [list(map(list, one)) for one in streams],
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
