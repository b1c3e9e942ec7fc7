"""The logistic regression of a calibration, and the threshold below which a request is flagged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """Of confidence to whether a loss was in range, on features [N, F]."""

    means_F: Floats
    scales_F: Floats
    weights_F: Floats
    intercept: float

    def confidence(self, features_NF: Floats) -> Floats:
        """The estimated probability that each is in range, [N]."""
        logits_N = (features_NF - self.means_F) / self.scales_F @ self.weights_F + self.intercept
        probabilities: Floats = 1.0 / (1.0 + np.exp(-np.clip(logits_N, -50.0, 50.0)))
        return probabilities


def fit(features_NF: Floats, in_range_N: Bools, weights_N: Floats) -> Fit:
    """Maximum likelihood with a ridge of strength 1 on standardised features; needs both outcomes."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    pipeline.fit(features_NF, in_range_N, logisticregression__sample_weight=weights_N)
    scaler, regression = pipeline[0], pipeline[-1]
    return Fit(scaler.mean_, scaler.scale_, regression.coef_[0], float(regression.intercept_[0]))


def conformal_threshold(confidence_of_known_N: Floats, false_flags: float) -> float:
    """The confidence below which at most a share `false_flags` of known requests lies, on average over calibrations.

    Split-conformal (Vovk et al. 2005, Angelopoulos & Bates 2023): of n known requests that the fit has not seen, the
    floor(false_flags * (n + 1))-th smallest confidence. 0, which flags nothing, where n is too small for the risk.
    """
    rank = math.floor(false_flags * (len(confidence_of_known_N) + 1))
    return float(np.sort(confidence_of_known_N)[rank - 1]) if rank >= 1 else 0.0


@dataclass(frozen=True)
class Bin:
    """Documents of about the same confidence: how many, its mean, and how many of them were in range."""

    documents: int
    confidence: float
    in_range: float


def reliability(confidence_N: Floats, in_range_N: Bools, *, num_bins: int = 10) -> list[Bin]:
    """Equal bins of confidence, without the empty ones."""
    bins_N = np.minimum((confidence_N * num_bins).astype(int), num_bins - 1)
    return [
        Bin(int(inside_N.sum()), float(confidence_N[inside_N].mean()), float(in_range_N[inside_N].mean()))
        for inside_N in (bins_N == one for one in np.unique(bins_N))
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean |share in range - mean confidence|, weighted by documents (Naeini et al. 2015)."""
    total = sum(one.documents for one in bins)
    return sum(one.documents / total * abs(one.in_range - one.confidence) for one in bins)
