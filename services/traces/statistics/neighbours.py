"""Tokens and those some lags after them in the same sequence: how often they have something in common."""

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import LayerChoices
from services.traces.statistics.expert_sets import expert_sets, num_common
from services.traces.statistics.ordered_share import OrderedShare
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.sequence_counts import SequenceCounts
from services.traces.statistics.shuffles import Shuffles, shuffled_sums

Floats = NDArray[np.float64]


class Neighbours:
    """Pairs of tokens of N sequences, 1 to L = `num_lags` apart, in the order of the trace and in shuffled ones."""

    def __init__(
        self, choices: LayerChoices, counts: SequenceCounts, shuffles: Shuffles, resamples: Resamples, *, num_lags: int
    ) -> None:
        self._num_lags = num_lags
        self._counts = counts
        self._starts = choices.starts
        self._first_T = choices.experts[:, 0]
        self._sets_TW = expert_sets(choices.experts, choices.num_experts)
        two = choices.experts.shape[1] > 2
        self._two_TW = expert_sets(choices.experts[:, :2], choices.num_experts) if two else self._sets_TW
        self._resamples = resamples
        self._shares_NE = share(counts.assignments_NE, counts.tokens_N[:, None])
        self._pairs_NL = np.clip(counts.tokens_N[:, None] - np.arange(1, num_lags + 1), 0, None)
        self._common_NM = self._common(slice(None))
        self._shuffled = shuffled_sums(self._common, shuffles)

    @property
    def num_lags(self) -> int:
        """L."""
        return self._num_lags

    @property
    def same_first(self) -> OrderedShare:
        """[L] pairs that have the same first choice."""
        return self._share(slice(0, self._num_lags), self._pairs_NL)

    @property
    def same_first_beyond(self) -> OrderedShare:
        """[1] as `same_first` of the next token, less what any two tokens of the sequence have."""
        tokens_N1, first_NE = self._counts.tokens_N[:, None], self._counts.first_NE
        any_two_N1 = np.sum(first_NE * (first_NE - 1), axis=1, keepdims=True)
        by_chance_N1 = share(any_two_N1, tokens_N1 * (tokens_N1 - 1))
        pairs_N1 = self._pairs_NL[:, :1]
        return self._share(slice(0, 1), pairs_N1, np.where(pairs_N1 > 0, pairs_N1 * by_chance_N1, 0.0))

    @property
    def correlation(self) -> OrderedShare:
        """[L] autocorrelation of the experts' indicators around their means in the sequence, all experts together: of
        what two tokens could have in common beyond what any two of their sequence have, what they do have."""
        by_chance_N1 = np.sum(self._shares_NE**2, axis=1, keepdims=True)
        room_N1 = self._shares_NE.sum(axis=1, keepdims=True) - by_chance_N1
        columns = slice(self._num_lags, 2 * self._num_lags)
        return self._share(columns, self._pairs_NL * room_N1, self._pairs_NL * by_chance_N1)

    @property
    def overlap(self) -> OrderedShare:
        """[1] of a token's experts, those that the token before had."""
        at_once_N1 = self._shares_NE.sum(axis=1, keepdims=True)
        return self._share(slice(self._num_lags, self._num_lags + 1), self._pairs_NL[:, :1] * at_once_N1)

    @property
    def first_or_second(self) -> OrderedShare:
        """[1] neighbours whose first two choices have one in common."""
        return self._share(slice(2 * self._num_lags, 2 * self._num_lags + 1), self._pairs_NL[:, :1])

    @property
    def any(self) -> OrderedShare:
        """[1] neighbours whose choices have one in common."""
        return self._share(slice(2 * self._num_lags + 1, 2 * self._num_lags + 2), self._pairs_NL[:, :1])

    def _share(self, columns: slice, whole_NM: Floats, less_NM: Floats | float = 0.0) -> OrderedShare:
        part_NM = self._common_NM[:, columns] - less_NM
        return OrderedShare(part_NM, whole_NM, self._shuffled.of(columns, less_NM), self._resamples)

    def _common(self, order: slice | NDArray[np.integer]) -> Floats:
        """[N, 2 L + 2] sums over the pairs of each sequence: same first choice, experts in common, any of two, any."""
        first_T, sets_TW, two_TW = self._first_T[order], self._sets_TW[order], self._two_TW[order]
        same, common = [], []
        for lag in range(1, self._num_lags + 1):
            same.append(self._summed(first_T[:-lag] == first_T[lag:], lag))
            common.append(self._summed(num_common(sets_TW[:-lag], sets_TW[lag:]), lag))
        two = self._summed(num_common(two_TW[:-1], two_TW[1:]) > 0, 1)
        several = self._summed(num_common(sets_TW[:-1], sets_TW[1:]) > 0, 1)
        return np.column_stack((*same, *common, two, several))

    def _summed(self, values: NDArray[np.int64] | NDArray[np.bool_], lag: int) -> Floats:
        """Over the pairs that lie in one sequence."""
        sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
        begins, ends = self._starts[:-1], self._starts[1:] - lag
        return np.where(ends > begins, sums[np.maximum(ends, 0)] - sums[np.minimum(begins, len(values))], 0.0)
