"""Quantities of information theory, in bits, over the last axis or two of anything counted."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from services.traces.statistics.resamples import share

Floats = NDArray[np.float64]


def entropy_bits(counts: Floats) -> Floats:
    """[..., E] to [...]; NaN where nothing was counted."""
    shares = share(counts, counts.sum(axis=-1, keepdims=True))
    return np.asarray(-xlogy(shares, shares).sum(axis=-1) / np.log(2))


def popularity(counts: Floats) -> Floats:
    """Sum of squared shares of [..., E]: how often two that are chosen for themselves are the same."""
    return np.asarray((share(counts, counts.sum(axis=-1, keepdims=True)) ** 2).sum(axis=-1))


def mutual_information_bits(tables: Floats) -> Floats:
    """I(row; column) of [..., D, E]."""
    flat = tables.reshape(*tables.shape[:-2], -1)
    return entropy_bits(tables.sum(axis=-1)) + entropy_bits(tables.sum(axis=-2)) - entropy_bits(flat)


def divergence_bits(first: Floats, second: Floats) -> Floats:
    """Jensen and Shannon's, of [..., E] and [..., E]: 0 where shares are alike, 1 where they have nothing in common."""
    first_share = share(first, first.sum(axis=-1, keepdims=True))
    second_share = share(second, second.sum(axis=-1, keepdims=True))
    apart = (entropy_bits(first_share) + entropy_bits(second_share)) / 2
    return np.asarray(entropy_bits((first_share + second_share) / 2) - apart)
