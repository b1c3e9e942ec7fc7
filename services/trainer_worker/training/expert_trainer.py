"""transformers.Trainer with what expert training needs of its own: a schedule whose order is a pure
function of the seed, losses per token, checkpoints that are whole or absent, and a stop within one step."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainingArguments

from services.shared.errors import JobFailed
from services.trainer_worker.datasets import IGNORED, Block
from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.training.lora import write_adapter
from services.trainer_worker.training.processes import Processes

Batch = dict[str, Tensor]


class Schedule(torch.utils.data.Dataset[Block]):
    """All blocks of all epochs in the order in which they are trained, each epoch shuffled anew from `seed`.

    To the Trainer it is one long epoch read in sequence, so skipping to a step on resume is exact in every epoch.
    """

    def __init__(self, blocks: Sequence[Block], *, length: int, seed: int) -> None:
        self._blocks = blocks
        self._length = length
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Block:
        epoch, position = divmod(index, len(self._blocks))
        if epoch != self._epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._blocks))
            self._epoch, self._order = epoch, order.tolist()
        return self._blocks[self._order[position]]


def collate(blocks: Sequence[Block], *, pad_id: int, with_positions: bool) -> Batch:
    """Rows padded on the right to the longest. Padding counts as a document of its own and is never learned."""
    longest = max(len(block.token_ids_T) for block in blocks)
    shape = (len(blocks), longest)
    input_ids_BT = np.full(shape, pad_id, dtype=np.int64)
    labels_BT = np.full(shape, IGNORED, dtype=np.int64)
    position_ids_BT = np.zeros(shape, dtype=np.int64)
    for row, block in enumerate(blocks):
        size = len(block.token_ids_T)
        input_ids_BT[row, :size] = block.token_ids_T
        labels_BT[row, :size] = block.labels_T
        position_ids_BT[row, :size] = block.positions_T
        position_ids_BT[row, size:] = np.arange(longest - size)
    batch = {"input_ids": torch.from_numpy(input_ids_BT), "labels": torch.from_numpy(labels_BT)}
    if with_positions:
        batch["position_ids"] = torch.from_numpy(position_ids_BT)
    return batch


class ExpertTrainer(Trainer):
    """Trains the adapter in `model`. `step_loss` is the mean loss per token of the step just done, `num_tokens` counts
    those read, padding included, both over all `processes`."""

    def __init__(  # noqa: PLR0913
        self,
        model: PeftModel,
        args: TrainingArguments,
        *,
        schedule: Schedule,
        validation: Sequence[Block],
        collator: Callable[[Sequence[Block]], Batch],
        should_stop: Callable[[], bool],
        should_keep_state: Callable[[], bool],
        processes: Processes,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=schedule,
            eval_dataset=validation,
            data_collator=collator,
        )
        self.remove_callback(PrinterCallback)
        self._adapter = model
        self._collator = collator
        self._validation = validation
        self._should_stop = should_stop
        self._should_keep_state = should_keep_state
        self.processes = processes
        self._micro_losses: list[float] = []
        self.num_tokens = 0

    @property
    def step_loss(self) -> float | None:
        """Loss of the last optimizer step, or None before the first."""
        return sum(self._micro_losses) if self._micro_losses else None

    def validation_loss(self) -> float:
        """Mean loss in nats per token over the validation blocks, every token weighing the same.

        Draws no random numbers. During training, a stop that keeps the state waits for its end: what was trained since
        the last checkpoint would be lost otherwise.
        """
        batch_size, processes = self.args.per_device_eval_batch_size, self.processes
        total, num_targets = 0.0, 0
        was_training = self._adapter.training
        self._adapter.eval()
        with torch.no_grad():
            for start in range(processes.index * batch_size, len(self._validation), processes.count * batch_size):
                if self._should_stop() and not (self.state.global_step and self._should_keep_state()):
                    raise TrainingStopped
                batch = self._collator(self._validation[start : start + batch_size])
                batch = {key: value.to(self.args.device) for key, value in batch.items()}
                targets_BT = batch.pop("labels")[:, 1:]
                with self.accelerator.autocast():
                    logits_BTV = self._adapter(**batch).logits[:, :-1]
                total += functional.cross_entropy(
                    logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
                ).item()
                num_targets += int((targets_BT != IGNORED).sum())
        self._adapter.train(was_training)
        all_total, all_targets = processes.sums(total, num_targets)
        return all_total / all_targets

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """The Trainer's own evaluation averages batch means; this one is exact per token."""
        metrics = {"eval_loss": self.validation_loss()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; stops on request, and fails before a loss that is not finite does harm.

        A stop that keeps the state is left to Checkpointing, at the end of the step.
        """
        if self._should_stop() and not self._should_keep_state():
            raise TrainingStopped
        num_tokens = inputs["input_ids"].numel()
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Each process's loss is its share of the step's, times their number, because gradients are averaged over them.
        total, all_tokens = self.processes.sums(loss.item(), num_tokens)
        self.num_tokens += int(all_tokens)
        value = total / self.processes.count
        if not math.isfinite(value):
            raise loss_not_finite(self.state.global_step + 1, self.args)
        if len(self._micro_losses) == self.current_gradient_accumulation_steps:
            self._micro_losses.clear()
        self._micro_losses.append(value)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002
        """Only the adapter's two files; the Trainer would add a model card and a pickle of its arguments."""
        assert output_dir is not None
        if not self.processes.is_first:
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_adapter(self._adapter, Path(output_dir))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it walks all parameters in every step, which costs a tiny model more than its step."""
        return 0


def loss_not_finite(step: int, args: TrainingArguments) -> JobFailed:
    """The reason of a failed job whose loss became NaN or infinite."""
    advice = " or mixed_precision 'bf16' or 'no' instead of 'fp16'" if args.fp16 else ""
    return JobFailed(
        f"The loss was no longer a finite number at step {step}: try a lower learning_rate (it was "
        f"{args.learning_rate:g}){advice}, and look for damaged lines in the training file.",
        code="loss_not_finite",
    )
