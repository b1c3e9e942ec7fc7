"""The systems that are compared: each says how much of every expert reads every token of a window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.trunk import trunk_states
from services.trainer_worker.evaluation.windows import Windows

BATCH: Final = 16

Weigh = Callable[[Windows], Tensor]
"""weights_BTE over the experts of an ensemble."""


class Reader(Protocol):
    """Reads tokens under weights: -log p of every token but the first, [B, T-1]."""

    def nats(self, token_ids_BT: Tensor, weights_BTE: Tensor, *, only_speaking: bool = False) -> Tensor: ...


@dataclass(frozen=True)
class Readings:
    """What one system made of a set of windows: nats_BT of each predicted token, and its weights_BTE.

    `tokens_per_s` counts those read, padding included, where that was measured.
    """

    nats_BT: np.ndarray
    weights_BTE: np.ndarray
    tokens_per_s: float | None = None


def read(
    reader: Reader,
    windows: Windows,
    weigh: Weigh,
    *,
    on_batch: Callable[[int], None] = lambda num_tokens: None,
) -> Readings:
    """Run the system over all windows; `on_batch` hears after every batch how many tokens it held, padding included."""
    weights_BTE = weigh(windows).float()
    nats: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(windows), BATCH):
            part = slice(start, start + BATCH)
            nats.append(reader.nats(windows.token_ids_BT[part], weights_BTE[part], only_speaking=True).cpu())
            on_batch(windows.token_ids_BT[part].numel())
    return Readings(torch.cat(nats).numpy(), weights_BTE.numpy())


def constant(weights_E: Sequence[float]) -> Weigh:
    """The same weights for every token."""

    def weigh(windows: Windows) -> Tensor:
        return torch.tensor(weights_E).expand(*windows.token_ids_BT.shape, -1)

    return weigh


def oracle(num_experts: int) -> Weigh:
    """Every token is read by the expert of the domain it is from, or by the base alone where that is its column."""

    def weigh(windows: Windows) -> Tensor:
        return torch.nn.functional.one_hot(windows.domains_BT, num_experts + 1)[..., :-1]

    return weigh


def routed(scorer: ReleaseScorer, base: LoadedBase) -> Weigh:
    """The product's own router."""

    def weigh(windows: Windows) -> Tensor:
        return gated(scorer, scores_of(scorer, base, windows))

    return weigh


def with_silent_column(smaller: Weigh, column: int) -> Weigh:
    """What a release without one expert weighs, in the columns of an ensemble that has it."""

    def weigh(windows: Windows) -> Tensor:
        weights_BTE = smaller(windows)
        zeros_BT1 = torch.zeros(*weights_BTE.shape[:2], 1)
        return torch.cat([weights_BTE[..., :column], zeros_BT1, weights_BTE[..., column:]], dim=-1)

    return weigh


def scores_of(scorer: ReleaseScorer, base: LoadedBase, windows: Windows) -> np.ndarray:
    """The router's scores after every token, float64 [B, T, C]."""
    return np.stack([router_scores(scorer, base, ids_T) for ids_T in windows.token_ids_BT])


def gated(scorer: ReleaseScorer, scores_BTC: np.ndarray) -> Tensor:
    """What the scorer's gate and graph make of scores: weights_BTE of the experts."""
    return torch.stack([torch.from_numpy(scorer.weights(scores_TC)[:, :-1]) for scores_TC in scores_BTC])


def router_scores(scorer: ReleaseScorer, base: LoadedBase, ids_T: Tensor) -> np.ndarray:
    """The router's scores after every token of one text, float64 [T, C]."""
    states_TD = None
    if scorer.tap_layer is not None:
        states_TD = trunk_states(base.model, ids_T[None].to(base.device), scorer.tap_layer)[0].float().cpu().numpy()
    return scorer.advance(scorer.start(), ids_T.tolist(), states_TD)
