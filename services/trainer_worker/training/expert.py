"""Train one expert: a LoRA adapter on a frozen base model, resumable after a kill at any moment."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.tokenizer import max_context_of
from services.shared.training_plan import StepPlan
from services.shared.vocabulary import model_name
from services.trainer_worker.checkpoints import KEPT_CHECKPOINTS, last_complete
from services.trainer_worker.datasets import Block, make_blocks
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert_callbacks import (
    Checkpointing,
    Divergence,
    EarlyStop,
    Reporting,
)
from services.trainer_worker.training.expert_trainer import ExpertTrainer, Schedule, collate
from services.trainer_worker.training.lora import (
    add_lora,
    load_base,
)
from services.trainer_worker.training.packing_probe import keeps_packed_documents_apart, takes_positions, vocab_size_of
from services.trainer_worker.training.peak_memory import peak_memory_bytes
from services.trainer_worker.training.processes import ALONE, Processes
from services.trainer_worker.training.training_folder import ExpertTraining, TrainingFolder, fingerprint_of

if TYPE_CHECKING:
    from services.shared.training_text import Example

__all__ = ["ExpertTraining", "TrainingProgress", "train_expert"]


def train_expert(  # noqa: PLR0913
    *,
    base_model: str,
    train: "Sequence[Example]",
    validation: "Sequence[Example]",
    hyperparameters: ExpertHyperparameters,
    output_dir: Path,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
    should_keep_state: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[], object] = lambda: None,
    resume: bool = True,
    num_threads: int | None = None,
    processes: Processes = ALONE,
) -> ExpertTraining:
    """Train an adapter into `output_dir/adapter` and return what came of it.

    Called again with the same arguments after an interruption, it goes on from the last checkpoint and, on
    the CPU, ends with exactly the weights of an uninterrupted run; called after the end, it returns the same
    result at once; called with other arguments, it starts over. Raises TrainingStopped within one step of
    `should_stop()`, after a checkpoint if `should_keep_state()` too, InvalidDataset or InvalidRequest for what
    the caller can mend, JobFailed for a loss that left the finite numbers. `on_checkpoint()` is called whenever another
    checkpoint is whole.

    Called by several `processes` at once with the same arguments, it takes the same steps, each a share of its blocks:
    the first one's callbacks count, and the weights are those of one process up to rounding.
    """
    started_at = time.monotonic()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    transformers_logging.disable_progress_bar()
    fingerprint = fingerprint_of(base_model, train, validation, hyperparameters)
    folder = _open_folder(output_dir, fingerprint, resume=resume, processes=processes)
    if (finished := folder.result()) is not None:
        return finished
    on_progress(TrainingProgress(phase="preparing", step=0, total_steps=0))

    set_seed(hyperparameters.seed)
    base = load_base(base_model, hyperparameters)
    hyperparameters = _within_context(hyperparameters, base.config.to_dict())
    packing = hyperparameters.packing and keeps_packed_documents_apart(base)
    train_blocks, validation_blocks = _blocks(base_model, train, validation, hyperparameters, packing=packing)
    plan = StepPlan.of(hyperparameters, len(train_blocks))
    share = plan.shared_by(processes.count)
    set_seed(hyperparameters.seed)
    model = add_lora(base, hyperparameters, base_name=model_name(base_model))
    trainer = ExpertTrainer(
        model,
        _arguments(hyperparameters, share, folder.checkpoints),
        schedule=Schedule(train_blocks, length=plan.num_steps * plan.blocks_per_step, seed=hyperparameters.seed),
        validation=validation_blocks,
        collator=partial(collate, pad_id=_pad_id(base), with_positions=takes_positions(base)),
        should_stop=should_stop,
        should_keep_state=should_keep_state,
        processes=processes,
    )
    with model.disable_adapter():
        base_eval_loss = trainer.validation_loss()
    divergence = Divergence(base_eval_loss=base_eval_loss, vocab_size=vocab_size_of(base))
    checkpointing = Checkpointing(
        folder.checkpoints, should_keep_state=should_keep_state, on_checkpoint=on_checkpoint, processes=processes
    )
    training_since = time.monotonic()
    state = _run(trainer, hyperparameters, folder, callbacks=(divergence, checkpointing), on_progress=on_progress)
    assert state.best_global_step is not None
    assert state.best_metric is not None
    result = ExpertTraining(
        adapter_dir=folder.adapter,
        best_eval_loss=state.best_metric,
        base_eval_loss=base_eval_loss,
        num_train_tokens=sum(block.num_targets for block in train_blocks),
        num_steps=state.global_step,
        stopped_early=state.global_step < plan.num_steps,
        seconds=time.monotonic() - started_at,
        tokens_per_s=trainer.num_tokens / (time.monotonic() - training_since),
        peak_memory_bytes=peak_memory_bytes(),
    )
    if processes.is_first:
        folder.finish(result, best_checkpoint=folder.checkpoints / f"checkpoint-{state.best_global_step}")
    return result


def _open_folder(root: Path, fingerprint: str, *, resume: bool, processes: Processes) -> TrainingFolder:
    """Opened by the first process, before any other looks into it."""
    folder = TrainingFolder(root)
    if processes.is_first:
        folder.open(fingerprint, resume=resume)
    processes.wait()
    return folder


def _run(
    trainer: ExpertTrainer,
    hyperparameters: ExpertHyperparameters,
    folder: TrainingFolder,
    *,
    callbacks: Sequence[TrainerCallback],
    on_progress: Callable[[TrainingProgress], None],
) -> TrainerState:
    """Train from the last checkpoint, if there is one, to the end, and return the final state."""
    checkpoint = last_complete(folder.checkpoints)
    early_stop = EarlyStop(hyperparameters.early_stopping_patience)
    first_step = 0
    if checkpoint is not None:
        state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if early_stop.is_due(state):
            return state
        first_step = state.global_step
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.add_callback(early_stop)
    reporting = Reporting(
        on_progress,
        first_step=first_step,
        step_loss=lambda: trainer.step_loss,
        num_tokens=lambda: trainer.num_tokens,
    )
    trainer.add_callback(reporting)
    set_seed(hyperparameters.seed + trainer.processes.index)  # each process drops out other units
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.state


def _blocks(
    base_model: str,
    train: "Sequence[Example]",
    validation: "Sequence[Example]",
    hyperparameters: ExpertHyperparameters,
    *,
    packing: bool,
) -> tuple[list[Block], list[Block]]:
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    blocks = partial(
        make_blocks,
        tokenizer=tokenizer,
        max_length=hyperparameters.max_length,
        packing=packing,
        completion_only=hyperparameters.completion_only_loss,
        last_turn_only=hyperparameters.chat_turns == "last",
        seed=hyperparameters.seed,
    )
    return blocks(train), blocks(validation)


def _arguments(hyperparameters: ExpertHyperparameters, plan: StepPlan, checkpoints: Path) -> TrainingArguments:
    """`plan` is that of one process."""
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=plan.batch_size,
        per_device_eval_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=1,
        learning_rate=hyperparameters.learning_rate,
        warmup_steps=math.ceil(plan.num_steps * hyperparameters.warmup_ratio),
        lr_scheduler_type=hyperparameters.lr_scheduler,
        weight_decay=hyperparameters.weight_decay,
        bf16=hyperparameters.mixed_precision == "bf16",
        fp16=hyperparameters.mixed_precision == "fp16",
        activation_checkpointing=hyperparameters.gradient_checkpointing,
        # Reentrant ones want a gradient at the input of the first layer, which a frozen base has not.
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps",
        eval_steps=plan.eval_steps,
        save_strategy="steps",
        save_steps=plan.eval_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_strategy="steps",
        logging_steps=plan.eval_steps,
        logging_nan_inf_filter=False,
        train_sampling_strategy="sequential",
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        seed=hyperparameters.seed,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
    )


def _within_context(hyperparameters: ExpertHyperparameters, config: dict[str, Any]) -> ExpertHyperparameters:
    """Blocks are never longer than the base model's context."""
    context = max_context_of(config) or hyperparameters.max_length
    return hyperparameters.model_copy(update={"max_length": min(hyperparameters.max_length, context)})


def _pad_id(model: Any) -> int:
    """Any valid id does: padding is never learned nor looked at."""
    pad_id = model.config.pad_token_id
    return pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0
