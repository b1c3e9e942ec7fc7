"""What a learned router pays for besides the task: imbalance, large logits, and tokens beyond an expert's capacity.

Load balancing: Switch Transformer (Fedus et al. 2021, eq. 4-6), f divided by the experts per token so that even use
costs 1.0 for any k. z-loss: ST-MoE (Zoph et al. 2022, eq. 5). Capacity: GShard (Lepikhin et al. 2020).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def load_balancing_loss(probabilities_NE: Tensor, selected_NE: Tensor) -> Tensor:
    """E * sum_e f_e P_e: f_e the share of all selections that went to e, P_e its mean probability.

    Rows of `probabilities_NE` sum to 1; `selected_NE` marks who was selected. 1.0 when both are even, up to E.
    """
    num_experts = probabilities_NE.shape[-1]
    selections_E = selected_NE.to(probabilities_NE.dtype).sum(dim=0)
    share_E = selections_E / selections_E.sum().clamp_min(1.0)
    return num_experts * (share_E * probabilities_NE.mean(dim=0)).sum()


def z_loss(logits_NE: Tensor) -> Tensor:
    """Mean squared log-partition: keeps logits small enough for the gate's exponentials."""
    return logits_NE.logsumexp(dim=-1).square().mean()


class Capacity(NamedTuple):
    """What is left of a selection after every expert is full, and how many choices were turned away."""

    kept_NE: Tensor
    num_overflow: int


def limit_capacity(selected_NE: Tensor, *, capacity_factor: float, experts_per_token: int) -> Capacity:
    """Each expert takes its first ceil(factor * N * K / E) tokens, in their order; the others pass it by.

    A token that nobody takes goes through the base model alone. Training only.
    """
    num_tokens, num_experts = selected_NE.shape
    capacity = math.ceil(capacity_factor * num_tokens * experts_per_token / num_experts)
    place_NE = selected_NE.to(torch.int64).cumsum(dim=0)
    kept_NE = selected_NE & (place_NE <= capacity)
    return Capacity(kept_NE, int((selected_NE & ~kept_NE).sum()))
