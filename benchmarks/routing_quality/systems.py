"""The systems that are compared: each says how much of every expert reads every token of a window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.routing_quality.windows import Windows
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.trunk import trunk_states
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

_BATCH = 16

Weigh = Callable[[Windows], Tensor]
"""weights_BTE over the experts of an ensemble."""


@dataclass(frozen=True)
class Readings:
    """What one system made of a set of windows: nats_BT of each predicted token, and its weights_BTE."""

    nats_BT: np.ndarray
    weights_BTE: np.ndarray


def read(ensemble: ExpertEnsemble, windows: Windows, weigh: Weigh) -> Readings:
    """Run the system over all windows."""
    weights_BTE = weigh(windows).float()
    nats: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(windows), _BATCH):
            part = slice(start, start + _BATCH)
            nats.append(ensemble.nats(windows.token_ids_BT[part], weights_BTE[part]))
    return Readings(torch.cat(nats).numpy(), weights_BTE.numpy())


def constant(weights_E: Sequence[float]) -> Weigh:
    """The same weights for every token."""

    def weigh(windows: Windows) -> Tensor:
        return torch.tensor(weights_E).expand(*windows.token_ids_BT.shape, -1)

    return weigh


def oracle(num_experts: int) -> Weigh:
    """Every token is read by the expert of the domain it is from."""

    def weigh(windows: Windows) -> Tensor:
        return torch.nn.functional.one_hot(windows.domains_BT, num_experts)

    return weigh


def routed(scorer: ReleaseScorer, base: LoadedBase) -> Weigh:
    """The product's own router."""

    def weigh(windows: Windows) -> Tensor:
        rows = [_route(scorer, base, ids_T) for ids_T in windows.token_ids_BT]
        return torch.stack([torch.from_numpy(row_TC[:, :-1]) for row_TC in rows])

    return weigh


def _route(scorer: ReleaseScorer, base: LoadedBase, ids_T: Tensor) -> np.ndarray:
    states_TD = None
    if scorer.tap_layer is not None:
        states_TD = trunk_states(base.model, ids_T[None], scorer.tap_layer)[0].numpy()
    return scorer.weights(scorer.advance(scorer.start(), ids_T.tolist(), states_TD))
