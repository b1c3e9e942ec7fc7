"""How a router behaves, whatever it costs or gains: who is used, how evenly, and whether its confidence is earned."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from services.trainer_worker.evaluation.windows import Windows

_NUM_BINS: Final = 10


@dataclass(frozen=True)
class Utilisation:
    """Per expert, and last for the base alone: `weight_C` is its mean gate weight, `tokens_C` the share of tokens that
    it has any weight in. `imbalance` is std / mean of the experts' tokens (0: even), `max_violation` is max / mean - 1
    (MaxVio of Wang et al. 2024, arXiv:2408.15664)."""

    weight_C: tuple[float, ...]
    tokens_C: tuple[float, ...]
    imbalance: float
    max_violation: float


@dataclass(frozen=True)
class ConfidenceBin:
    """Tokens whose highest score lies in [low, high): their share, their mean score, and how often it was right."""

    low: float
    high: float
    share: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """`ece` is the expected calibration error over ten equal bins: mean |accuracy - confidence|, by tokens."""

    ece: float
    confidence: float
    accuracy: float
    bins: tuple[ConfidenceBin, ...]


def utilisation(weights_BTE: np.ndarray, windows: Windows) -> Utilisation:
    """Over all tokens that something is predicted from."""
    weights_NE = weights_BTE[:, :-1][windows.counted].astype(np.float64)
    base_N = np.clip(1.0 - weights_NE.sum(axis=1), 0.0, 1.0)
    tokens_E = (weights_NE > 0).mean(axis=0)
    mean = float(tokens_E.mean())
    return Utilisation(
        weight_C=(*map(float, weights_NE.mean(axis=0)), float(base_N.mean())),
        tokens_C=(*map(float, tokens_E), float((base_N > 1e-6).mean())),
        imbalance=float(tokens_E.std()) / mean if mean else 0.0,
        max_violation=float(tokens_E.max()) / mean - 1 if mean else 0.0,
    )


def calibration(scores_BTC: np.ndarray, windows: Windows) -> Calibration:
    """Of the highest score, taken as the probability that its column is the token's own."""
    scores_NC = scores_BTC[:, :-1][windows.counted]
    confidence_N = scores_NC.max(axis=1)
    right_N = scores_NC.argmax(axis=1) == windows.domains_BT.numpy()[:, :-1][windows.counted]
    bin_N = np.minimum((confidence_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    bins = []
    for index in range(_NUM_BINS):
        inside_N = bin_N == index
        if inside_N.any():
            bins.append(
                ConfidenceBin(
                    low=index / _NUM_BINS,
                    high=(index + 1) / _NUM_BINS,
                    share=float(inside_N.mean()),
                    confidence=float(confidence_N[inside_N].mean()),
                    accuracy=float(right_N[inside_N].mean()),
                )
            )
    return Calibration(
        ece=sum(one.share * abs(one.accuracy - one.confidence) for one in bins),
        confidence=float(confidence_N.mean()),
        accuracy=float(right_N.mean()),
        bins=tuple(bins),
    )
