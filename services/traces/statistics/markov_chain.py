"""A Markov chain from its counts [..., E, E], row to column."""

import numpy as np
from numpy.typing import NDArray

from services.traces.statistics.resamples import share

Floats = NDArray[np.float64]


def probabilities(counts: Floats) -> Floats:
    """[..., E, E]; NaN in the row of a state that was never left."""
    return share(counts, counts.sum(axis=-1, keepdims=True))


def stationary(counts_EE: Floats) -> Floats:
    """[E] the shares of states in the long run, one of them if there are several; NaN of a chain without a step."""
    if not counts_EE.any():
        return np.full(len(counts_EE), np.nan)
    step = _steps(counts_EE)
    size = len(step)
    equations = np.vstack((step.T - np.eye(size), np.ones(size)))
    solution = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
    return np.asarray(np.clip(solution, 0, None))


def second_eigenvalue(counts_EE: Floats) -> float:
    """Its modulus: what is left, after a step, of the difference that the state before makes. NaN of a chain without a
    step."""
    if not counts_EE.any():
        return float("nan")
    return float(np.sort(np.abs(np.linalg.eigvals(_steps(counts_EE))))[-2])


def total_variation(first_E: Floats, second_E: Floats) -> float:
    """Half the sum of differences: 0 for the same shares, 1 for those that have nothing in common."""
    return float(np.abs(first_E - second_E).sum() / 2)


def _steps(counts_EE: Floats) -> Floats:
    """A state that was only ever the last one leads wherever the others lead."""
    anywhere_E = share(counts_EE.sum(axis=0), counts_EE.sum())
    return np.where(counts_EE.sum(axis=1, keepdims=True) > 0, probabilities(counts_EE), anywhere_E)
