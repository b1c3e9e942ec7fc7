"""A sticky Bayes filter over the columns of a gate: which expert's text is this, after each token?

a <- (1 - s) a + s / C          the domain may change at any token (C columns: experts, then the base)
a <- norm(a * p^tau)            tempered likelihood of the token; the forward algorithm of a hidden Markov model
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SMALLEST_LOG: Final = -100.0
"""Tempered log-likelihoods are cut here, relative to the row's best, so that no column ever dies for good."""


@dataclass(frozen=True)
class BayesFilter:
    """Constants of the filter: `stickiness` s is the chance per token that the domain changes, `temper` tau.

    `advance` and `advance_batch` do the same float64 operations in the same order, hence give the same bits.
    """

    num_columns: int
    stickiness: float
    temper: float

    def start(self) -> Floats:
        """The posterior before any token, [C]: uniform."""
        return np.full(self.num_columns, 1.0 / self.num_columns)

    def advance(self, posterior_C: Floats, log_evidence_TC: Floats) -> Floats:
        """Posteriors after each of T tokens of one sequence, [T, C]."""
        stay_TC, change_TC = self._transitions(log_evidence_TC)
        posterior_TC = np.empty_like(stay_TC)
        add_up = np.add.reduce
        for row_C, stay_C, change_C in zip(posterior_TC, stay_TC, change_TC, strict=True):
            np.multiply(posterior_C, stay_C, out=row_C)
            np.add(row_C, change_C, out=row_C)
            np.divide(row_C, add_up(row_C), out=row_C)
            posterior_C = row_C
        return posterior_TC

    def advance_batch(self, posterior_BC: Floats, log_evidence_BC: Floats) -> Floats:
        """Posteriors of B sequences after one more token each, [B, C]."""
        stay_BC, change_BC = self._transitions(log_evidence_BC)
        next_BC = posterior_BC * stay_BC
        next_BC += change_BC
        next_BC /= np.add.reduce(next_BC, axis=-1, keepdims=True)
        return next_BC

    def _transitions(self, log_evidence_NC: Floats) -> tuple[Floats, Floats]:
        # With l = p^tau scaled to a largest value of 1: a' = norm(a * (1-s) l + (s/C) l), as a sums to 1.
        scaled_NC = self.temper * log_evidence_NC
        scaled_NC -= scaled_NC.max(axis=-1, keepdims=True)
        likelihood_NC = np.exp(np.maximum(scaled_NC, SMALLEST_LOG))
        change = self.stickiness / self.num_columns
        return likelihood_NC * (1.0 - self.stickiness), likelihood_NC * change
