"""95 % intervals of a share and of the difference of two paired shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959963984540054
_NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(num_right: int, num_items: int) -> Estimate:
    """The share of right answers with Wilson's score interval (Wilson 1927)."""
    share = num_right / num_items
    denominator = 1 + _Z**2 / num_items
    centre = (share + _Z**2 / (2 * num_items)) / denominator
    margin = _Z * math.sqrt(share * (1 - share) / num_items + _Z**2 / (4 * num_items**2)) / denominator
    return Estimate(share, max(0.0, centre - margin), min(1.0, centre + margin))


def paired_difference(right: Sequence[bool], right_before: Sequence[bool], *, seed: int = 0) -> Estimate:
    """How much larger the first share is on the same items, with a percentile bootstrap over the items."""
    differences_N = np.asarray(right, dtype=float) - np.asarray(right_before, dtype=float)
    rng = np.random.default_rng(seed)
    samples_RN = rng.integers(0, len(differences_N), size=(_NUM_RESAMPLES, len(differences_N)))
    means_R = differences_N[samples_RN].mean(axis=1)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Estimate(float(differences_N.mean()), float(low), float(high))
