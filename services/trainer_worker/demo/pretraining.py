"""Pretraining of the demo's base model: a lean loop over packed blocks, one pass, AdamW with a cosine schedule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

NUM_THREADS = 2


@dataclass(frozen=True)
class BaseShape:
    """The size of the base model: about 2.4 million parameters as given."""

    hidden_size: int = 192
    num_layers: int = 5
    mlp_size: int = 512
    num_heads: int = 6
    num_kv_heads: int = 2
    max_context: int = 512


@dataclass(frozen=True)
class Schedule:
    """How the base model is trained; every block is read once."""

    num_blocks: int = 6_000
    block_length: int = 512
    blocks_per_step: int = 4
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.1
    warmup_share: float = 0.03
    final_share: float = 0.05

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        return self.num_blocks // self.blocks_per_step

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a cosine down to `final_share` of the peak."""
        warmup = max(1, round(self.num_steps * self.warmup_share))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.num_steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step looked like."""

    step: int
    num_steps: int
    loss: float


def new_base_model(shape: BaseShape, *, vocab_size: int, seed: int, token_ids: dict[str, int]) -> LlamaForCausalLM:
    """An untrained Llama of the given shape; `token_ids` names its bos, eos and pad tokens."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            intermediate_size=shape.mlp_size,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=shape.max_context,
            tie_word_embeddings=True,
            bos_token_id=token_ids["bos"],
            eos_token_id=token_ids["eos"],
            pad_token_id=token_ids["pad"],
        )
    )


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AVX-512 BF16)."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def fast_precision() -> contextlib.AbstractContextManager[object]:
    """bfloat16 matrix products where the processor has them, float32 elsewhere."""
    if has_fast_bfloat16():
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def pretrain(
    model: LlamaForCausalLM,
    blocks: npt.NDArray[np.int64],
    schedule: Schedule,
    *,
    on_step: Callable[[StepReport], None],
) -> None:
    """Train the model in place on the first `num_blocks` blocks, in order."""
    torch.set_num_threads(NUM_THREADS)
    model.train()
    optimizer = _optimizer(model, schedule)
    for step in range(schedule.num_steps):
        rows = blocks[step * schedule.blocks_per_step : (step + 1) * schedule.blocks_per_step]
        batch_BT = torch.from_numpy(rows)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        with fast_precision():
            loss = model(input_ids=batch_BT, labels=batch_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(StepReport(step + 1, schedule.num_steps, float(loss.detach())))
    model.eval()


def _optimizer(model: LlamaForCausalLM, schedule: Schedule) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
