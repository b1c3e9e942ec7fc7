"""Tokens in another order within their sequence: what there is to see of time where order says nothing.

Which experts a sequence has, and how often, stays as it is: topics are no stickiness.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from services.traces.choices import LayerChoices
from services.traces.statistics.estimate import Null, NullMethod
from services.traces.statistics.resamples import share

Floats = NDArray[np.float64]

_LEAST_P_VALUE: Final = 1e-9
"""Further out nobody has seen the tail that is computed."""


class Shuffles:
    """Orders of T tokens, [S, T]; so many that all of them together are not many more than `shuffled_tokens`."""

    def __init__(self, choices: LayerChoices, *, max_shuffles: int, shuffled_tokens: int, seed: int) -> None:
        num_shuffles = int(np.clip(shuffled_tokens // max(choices.num_tokens, 1), 4, max_shuffles))
        generator = np.random.default_rng((seed, 3))
        sequences_T = choices.sequences
        # Half of what int64 would take.
        self._orders = [
            np.argsort(sequences_T + generator.random(choices.num_tokens)).astype(np.uint32)
            for _ in range(num_shuffles)
        ]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return iter(self._orders)


@dataclass(frozen=True)
class ShuffledSums:
    """What sums over the tokens of a sequence, [N, M], come to in shuffled orders."""

    mean_NM: Floats
    variance_NM: Floats
    num_shuffles: int

    def of(self, columns: slice, less_NM: Floats | float = 0.0) -> "ShuffledSums":
        """Some of the columns, less what is the same in every order."""
        return ShuffledSums(self.mean_NM[:, columns] - less_NM, self.variance_NM[:, columns], self.num_shuffles)

    def null(self, value: ArrayLike, whole: ArrayLike, among_GN: Floats | None = None) -> Null:
        """Of sums over all sequences, or over those of each row of `among_GN`, divided by `whole`, beside `value`.

        Sequences are shuffled for themselves, so their variances add up: few shuffles of many sequences tell the spread
        of the sum. p is two-sided, by Student's t with Satterthwaite's degrees of freedom.
        """
        among_GN = np.ones((1, len(self.mean_NM))) if among_GN is None else among_GN
        shape = np.shape(value)
        whole = np.asarray(whole, dtype=np.float64)
        mean = share((among_GN @ self.mean_NM).reshape(shape), whole)
        variance = (among_GN @ self.variance_NM).reshape(shape)
        degrees = share(variance**2, (among_GN @ self.variance_NM**2).reshape(shape) / (self.num_shuffles - 1))
        deviation = share(np.sqrt(variance), whole)
        # The mean is itself one of few shuffles.
        off = share(np.abs(np.asarray(value) - mean), deviation * np.sqrt(1 + 1 / self.num_shuffles))
        width = stats.t.ppf(0.975, degrees) * deviation
        p_value = np.clip(2 * stats.t.sf(off, degrees), _LEAST_P_VALUE, 1)
        return Null(NullMethod.SHUFFLED_TOKENS, mean, mean - width, mean + width, p_value)


def shuffled_sums(sums: Callable[[NDArray[np.uint32]], Floats], shuffles: Shuffles) -> ShuffledSums:
    """Of a function that gives [N, M] for an order of the tokens."""
    count = 0
    mean_NM = squares_NM = np.zeros(1)
    # Welford's: one shuffle in memory at a time.
    for order in shuffles:
        count += 1
        found_NM = sums(order)
        off_NM = found_NM - mean_NM
        mean_NM = mean_NM + off_NM / count
        squares_NM = squares_NM + off_NM * (found_NM - mean_NM)
    return ShuffledSums(mean_NM, squares_NM / (count - 1), count)


def null_of_shuffles(value: ArrayLike, shuffled: ArrayLike) -> Null:
    """Of what cannot be told sequence by sequence: [...] and [S, ...], by Student's t; two-sided."""
    drawn = np.asarray(shuffled, dtype=np.float64)
    num_shuffles = len(drawn)
    mean, deviation = drawn.mean(axis=0), drawn.std(axis=0, ddof=1)
    off = share(np.abs(np.asarray(value) - mean), deviation * np.sqrt(1 + 1 / num_shuffles))
    width = stats.t.ppf(0.975, num_shuffles - 1) * deviation
    p_value = np.clip(2 * stats.t.sf(off, num_shuffles - 1), _LEAST_P_VALUE, 1)
    return Null(NullMethod.SHUFFLED_TOKENS, mean, mean - width, mean + width, p_value)
