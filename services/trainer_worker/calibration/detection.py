"""How well unknown domains are told from known ones: each domain in turn plays the unknown one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

Floats = npt.NDArray[np.float64]

_NUM_RESAMPLES = 500
_MOST_REQUESTS = 3000


@dataclass(frozen=True)
class Detection:
    """Of one unknown domain among known text, by a number that is higher for the unknown. 95 % bootstrap interval.

    `fpr_at_95` is the share of known requests flagged where 95 % of the unknown ones are.
    """

    auroc: float
    low: float
    high: float
    fpr_at_95: float


@dataclass(frozen=True)
class Doubt:
    """A number that is higher for unknown text, of every document [B]: with its own expert in the mixture and without
    it. Of other domains' documents it hardly depends on the expert that is left out, so that is neglected."""

    whole: Floats
    left_out: Floats

    def without(self, is_left_out_B: npt.NDArray[np.bool_]) -> Floats:
        """Where the experts of these documents are left out, [B]."""
        return np.where(is_left_out_B, self.left_out, self.whole)


def detection(unknown_N: Floats, known_M: Floats, *, seed: int = 0) -> Detection:
    """Area under the ROC curve, and its interval over both sides' requests, of each of which a few thousand are drawn
    where there are more: every pair is looked at."""
    rng = np.random.default_rng(seed)
    unknown_N, known_M = _some(unknown_N, rng), _some(known_M, rng)
    wins_NM = (unknown_N[:, None] > known_M) + 0.5 * (unknown_N[:, None] == known_M)
    # How often each request was drawn: so a resample costs two products instead of a sort.
    drawn_RN = rng.multinomial(len(unknown_N), np.full(len(unknown_N), 1 / len(unknown_N)), _NUM_RESAMPLES)
    drawn_RM = rng.multinomial(len(known_M), np.full(len(known_M), 1 / len(known_M)), _NUM_RESAMPLES)
    resampled_R = ((drawn_RN @ wins_NM) * drawn_RM).sum(axis=1) / wins_NM.size
    low, high = np.quantile(resampled_R, [0.025, 0.975])
    labels = np.r_[np.ones(len(unknown_N)), np.zeros(len(known_M))]
    false_positives, recalls, _ = roc_curve(labels, np.r_[unknown_N, known_M])
    fpr = float(false_positives[np.searchsorted(recalls, 0.95)])
    return Detection(float(wins_NM.mean()), float(low), float(high), fpr)


def _some(values_N: Floats, rng: np.random.Generator) -> Floats:
    return values_N if len(values_N) <= _MOST_REQUESTS else rng.choice(values_N, _MOST_REQUESTS, replace=False)


def summary(by_domain: Mapping[str, Detection]) -> dict[str, Any]:
    """Mean and worst over the domains, and every domain."""
    areas = [one.auroc for one in by_domain.values()]
    return {
        "mean": float(np.mean(areas)),
        "worst": min(areas),
        "fpr_at_95": float(np.mean([one.fpr_at_95 for one in by_domain.values()])),
        "domains": {domain: asdict(one) for domain, one in by_domain.items()},
    }
