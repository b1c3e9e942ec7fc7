"""Domains dealt out anew among the sequences: what there is to see of domains where there is nothing to see."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.traces.statistics.estimate import Null, NullMethod

_CELLS_AT_ONCE: Final = 4_000_000

Floats = NDArray[np.float64]


class DomainPermutations:
    """Of N sequences."""

    def __init__(self, domains_N: NDArray[np.int64], num_domains: int, *, num_permutations: int, seed: int) -> None:
        self._domains_N = domains_N
        self._num_domains = num_domains
        self._num_permutations = num_permutations
        self._seed = seed
        sizes_D = np.bincount(domains_N, minlength=num_domains)
        self.is_possible = np.count_nonzero(sizes_D) > 1 and int(sizes_D.max()) > 1
        """Not with one domain; and where each has one sequence, dealing them out anew changes only their names."""

    def by_domain(self, counts_NM: Floats) -> Floats:
        """[P, D, M] sums over the sequences that each domain is dealt."""
        # As one product of two matrices: one for each permutation takes five times as long.
        sums = [dealt_PDN.reshape(-1, len(counts_NM)) @ counts_NM for dealt_PDN in self._dealt()]
        return np.concatenate(sums).reshape(self._num_permutations, self._num_domains, -1)

    def _dealt(self) -> Iterator[Floats]:
        generator = np.random.default_rng((self._seed, 2))
        num_sequences = len(self._domains_N)
        at_once = max(1, _CELLS_AT_ONCE // (num_sequences * self._num_domains))
        for start in range(0, self._num_permutations, at_once):
            size = min(at_once, self._num_permutations - start)
            labels_PN = generator.permuted(np.tile(self._domains_N, (size, 1)), axis=1)
            yield (labels_PN[:, None, :] == np.arange(self._num_domains)[:, None]).astype(np.float64)


def null_of_permutations(value: ArrayLike, permuted: Floats) -> Null:
    """Of [...] and [P, ...]; p is the share of permutations that come to as much, what was counted among them."""
    low, high = np.percentile(permuted, [2.5, 97.5], axis=0)
    # Sums of the same numbers in another order are not the same to the last bit.
    as_much = np.sum(permuted >= np.asarray(value) - 1e-12, axis=0)
    return Null(NullMethod.PERMUTED_DOMAINS, permuted.mean(axis=0), low, high, (1 + as_much) / (1 + len(permuted)))


def null_of_cells(values: Floats, permuted: Floats) -> Null:
    """Of cells of one table, [...] and [P, ...]: how far off each is in standard deviations of its own permutations is
    compared with that of all cells in all of them, so that few permutations suffice for small p (Tusher et al. 2001,
    doi:10.1073/pnas.091062498). Two-sided."""
    mean, deviation = permuted.mean(axis=0), permuted.std(axis=0)
    known = deviation > 1e-12
    off = np.divide(np.abs(values - mean), deviation, out=np.full(values.shape, np.nan), where=known)
    permuted_off = np.sort(np.abs(permuted - mean)[:, known] / deviation[known], axis=None)
    as_far = len(permuted_off) - np.searchsorted(permuted_off, off - 1e-9)
    p_value = np.where(known, (1 + as_far) / (1 + len(permuted_off)), np.nan)
    low, high = np.percentile(permuted, [2.5, 97.5], axis=0)
    return Null(NullMethod.PERMUTED_DOMAINS, mean, low, high, p_value)
