"""What a training minimises: cross-entropy, and what the recipe adds to it."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from services.shared.modeling.losses import load_balancing_loss
from services.trainer_worker.image_cooperation.mixture import Mixed
from services.trainer_worker.image_cooperation.recipe import Recipe


def training_loss(mixed: Mixed, labels_N: Tensor, recipe: Recipe, adjacency_EE: Tensor | None) -> Tensor:
    """Cross-entropy in nats plus the weighted penalties; a proximal L1 acts after the step instead."""
    loss = functional.cross_entropy(mixed.class_logits_NC, labels_N)
    if mixed.team_NK.shape[1] > 1:
        if recipe.diversity_weight:
            loss = loss + recipe.diversity_weight * team_similarity(mixed.outputs_NKC).mean()
        if recipe.budget_weight:
            loss = loss + recipe.budget_weight * weight_entropy(mixed.weights_NK).mean()
    if recipe.balance_weight:
        loss = loss + recipe.balance_weight * _imbalance(mixed)
    if adjacency_EE is not None and recipe.l1_step == "subgradient":
        loss = loss + recipe.l1 * adjacency_EE.abs().sum()
    return loss


def team_similarity(outputs_NKC: Tensor) -> Tensor:
    """Mean cosine of the pairs of a team's outputs, [N]; 1.0 = they all say the same. Needs K > 1."""
    unit_NKC = functional.normalize(outputs_NKC, dim=-1)
    num_kept = outputs_NKC.shape[1]
    # |sum of unit vectors|^2 counts every ordered pair and each vector with itself.
    total_N = unit_NKC.sum(dim=1).square().sum(dim=-1)
    return (total_N - unit_NKC.square().sum(dim=(1, 2))) / (num_kept * (num_kept - 1))


def weight_entropy(weights_NK: Tensor) -> Tensor:
    """Entropy of a team's weights over that of equal ones, [N] in 0..1. Needs K > 1."""
    entropy_N = -torch.xlogy(weights_NK, weights_NK.clamp_min(1e-9)).sum(dim=1)
    return entropy_N / math.log(weights_NK.shape[1])


def _imbalance(mixed: Mixed) -> Tensor:
    num_kept = mixed.team_NK.shape[1]
    chosen_NK = mixed.gate_logits_NE.topk(num_kept, dim=-1).indices
    selected_NE = torch.zeros_like(mixed.gate_logits_NE, dtype=torch.bool).scatter(-1, chosen_NK, value=True)
    return load_balancing_loss(mixed.gate_logits_NE.softmax(dim=-1), selected_NE)
