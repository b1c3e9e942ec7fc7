"""What an epoch is judged by: accuracy on the test set, the teams that formed, the graph's sparsity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from services.trainer_worker.image_cooperation.images import ImageSet
from services.trainer_worker.image_cooperation.mixture import ImageMixture, Mixed
from services.trainer_worker.image_cooperation.objective import team_similarity
from services.trainer_worker.progress import TrainingStopped

_BATCH_SIZE: Final = 500
_NEARLY_ZERO: Final = 0.01


@dataclass(frozen=True)
class EpochMeasures:
    """One epoch's figures on the test set.

    `diversity` is 1 - the mean pairwise cosine of a team's outputs (None for teams of one). `team_sizes[k]` counts the
    pictures on which k experts had any weight; `expert_usage` is each expert's share of all places in teams.
    `adjacency` is A row by row, None without a graph.
    """

    epoch: int
    train_loss: float | None
    accuracy: float
    test_loss: float
    diversity: float | None
    team_sizes: dict[int, int]
    expert_usage: tuple[float, ...]
    adjacency: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class EdgeCounts:
    """Shares of the E (E - 1) edges between different experts that are exactly zero, and that are below 0.01."""

    exact_zeros: float
    nearly_zero: float
    largest: float


def edge_counts(adjacency_EE: np.ndarray) -> EdgeCounts:
    """Sparsity of a graph; its diagonal is no edge."""
    edges = np.abs(adjacency_EE[~np.eye(len(adjacency_EE), dtype=bool)])
    return EdgeCounts(float((edges == 0).mean()), float((edges < _NEARLY_ZERO).mean()), float(edges.max()))


def as_inputs(pixels_NHWC: np.ndarray) -> Tensor:
    """Bytes to -1..1, as published (mean and deviation 0.5)."""
    return torch.from_numpy(pixels_NHWC).float().div_(127.5).sub_(1.0)


@torch.no_grad()
def mixed_batches(
    network: ImageMixture, images: ImageSet, *, top_k: int, with_graph: bool, should_stop: Callable[[], bool]
) -> list[Mixed]:
    """The whole set in order, in batches. Raises TrainingStopped between two of them."""
    network.eval()
    batches = []
    for start in range(0, len(images), _BATCH_SIZE):
        if should_stop():
            raise TrainingStopped
        inputs_NHWC = as_inputs(images.pixels_NHWC[start : start + _BATCH_SIZE])
        batches.append(network.mix(inputs_NHWC, top_k=top_k, with_graph=with_graph))
    return batches


def measure_epoch(
    batches: list[Mixed], labels_N: np.ndarray, *, epoch: int, train_loss: float | None, adjacency_EE: Tensor | None
) -> EpochMeasures:
    """Figures of one epoch from the network's answers to the test set."""
    labels = torch.from_numpy(labels_N)
    logits_NC = torch.cat([mixed.class_logits_NC for mixed in batches])
    team_NK = torch.cat([mixed.team_NK for mixed in batches])
    spoke_NK = torch.cat([mixed.weights_NK for mixed in batches]) > 0
    num_experts = batches[0].gate_logits_NE.shape[1]
    places_E = torch.bincount(team_NK[spoke_NK], minlength=num_experts)
    sizes_K = torch.bincount(spoke_NK.sum(dim=1))
    return EpochMeasures(
        epoch=epoch,
        train_loss=train_loss,
        accuracy=float((logits_NC.argmax(dim=1) == labels).double().mean()),
        test_loss=float(torch.nn.functional.cross_entropy(logits_NC, labels)),
        diversity=_diversity(batches),
        team_sizes={size: int(count) for size, count in enumerate(sizes_K.tolist()) if count},
        expert_usage=tuple((places_E / places_E.sum()).tolist()),
        adjacency=None if adjacency_EE is None else tuple(tuple(row) for row in (adjacency_EE + 0.0).tolist()),
    )


def _diversity(batches: list[Mixed]) -> float | None:
    if batches[0].team_NK.shape[1] < 2:
        return None
    return 1.0 - float(torch.cat([team_similarity(mixed.outputs_NKC) for mixed in batches]).mean())
