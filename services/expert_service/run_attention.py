"""Attention over the runs of a pass: transformers' own sdpa, once per run, through its public registry.

Sequences of different length or in different slabs are neither copied together nor padded to the longest. Shape
letters: B rows, H heads, Q tokens per row, T positions, D head size.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from services.expert_service.kv_cache import RunTensors

RUN_ATTENTION: Final = "sdpa_by_run"


def attend_by_run(model: PreTrainedModel) -> bool:
    """Let a model attend run by run where it would use sdpa through transformers' registry; False where it does not."""
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return bool(model.config._attn_implementation == RUN_ATTENTION)
    AttentionInterface.register(RUN_ATTENTION, _attention)
    AttentionMaskInterface.register(RUN_ATTENTION, sdpa_mask)
    model.set_attn_implementation(RUN_ATTENTION)
    return True


def _attention(
    module: nn.Module,
    query_BHQD: Tensor,
    keys: Tensor | RunTensors,
    values: Tensor | RunTensors,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """[B, Q, H, D]."""
    if not (isinstance(keys, RunTensors) and isinstance(values, RunTensors)):
        assert isinstance(keys, Tensor)
        assert isinstance(values, Tensor)
        return sdpa_attention_forward(module, query_BHQD, keys, values, attention_mask, **options)
    assert attention_mask is not None
    sizes = [run.shape[0] for run in keys]
    outputs = [
        sdpa_attention_forward(module, query, run_keys, run_values, mask[..., : run_keys.shape[2]], **options)[0]
        for query, run_keys, run_values, mask in zip(
            query_BHQD.split(sizes), keys, values, attention_mask.split(sizes), strict=True
        )
    ]
    return torch.cat(outputs), None
