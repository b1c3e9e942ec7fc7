"""Sequences drawn anew, for intervals: sequences are independent of each other, their tokens are not.

From a domain of n sequences n - 1 are drawn with replacement (Rao and Wu 1988, doi:10.1080/01621459.1988.10478591):
the variance of a mean is then that of the sample without the factor (n - 1) / n, which matters where a domain has few.
Percentiles are those of Student's t in place of the normal's (Hesterberg 2015, doi:10.1080/00031305.2015.1089789). With
fewer than five sequences there is no interval: their draws are hardly more than themselves.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from services.traces.statistics.estimate import Bounds

_LEAST_DEGREES: Final = 4

Floats = NDArray[np.float64]


class Resamples:
    """Draws of N sequences. More than `max_groups` are first put together by chance into groups of one domain, which
    are as independent of each other, so that memory is bounded."""

    def __init__(
        self, domains_N: NDArray[np.int64], num_domains: int, *, num_resamples: int, max_groups: int, seed: int
    ) -> None:
        generator = np.random.default_rng((seed, 1))
        group_N, domains_G = _groups(domains_N, num_domains, max_groups, generator)
        num_groups = len(domains_G)
        self._group_N = group_N
        self._folding_GN = sparse.csr_array(
            (np.ones(len(group_N)), (group_N, np.arange(len(group_N)))), shape=(num_groups, len(group_N))
        )
        self._domains_G = domains_G
        self._sizes_D = np.bincount(domains_G, minlength=num_domains)
        self._by_domain_RG = _weights(domains_G, num_resamples, generator)
        # A domain of one sequence says nothing of how far another would differ: then all are drawn from together.
        alone = bool(np.any(self._sizes_D == 1))
        together_G = np.zeros(num_groups, dtype=np.int64)
        self._all_RG = _weights(together_G, num_resamples, generator) if alone else self._by_domain_RG
        self._degrees = num_groups - 1 if alone else num_groups - int(np.count_nonzero(self._sizes_D))

    @property
    def degrees(self) -> int:
        """Of freedom; 0 where there is one sequence and nothing to draw."""
        return self._degrees

    @property
    def weights(self) -> Floats:
        """[R, G] how much of each group is in each draw."""
        return self._all_RG

    @property
    def groups(self) -> NDArray[np.int64]:
        """[N] the group of each sequence."""
        return self._group_N

    def counted(self, sequences: NDArray[np.int64], cells: NDArray[np.int64], num_cells: int) -> Floats:
        """[G, M] how often each of M cells comes in each group, of what comes in which sequence."""
        codes = self._group_N[sequences] * num_cells + cells
        num_groups = len(self._domains_G)
        return np.bincount(codes, minlength=num_groups * num_cells).reshape(num_groups, num_cells).astype(np.float64)

    def totals(self, counts_NM: Floats) -> Floats:
        """[R, M] sums over the sequences of each draw; NaN if there is but one."""
        return self.group_totals(self._folding_GN @ counts_NM)

    def group_totals(self, counts_GM: Floats) -> Floats:
        """As `totals`, of sums over groups."""
        if self._degrees < 1:
            return np.full((len(self._all_RG), counts_GM.shape[1]), np.nan)
        return np.asarray(self._all_RG @ counts_GM)

    def by_domain(self, counts_NM: Floats) -> Floats:
        """[R, D, M] sums over the sequences of each domain; NaN for one of a single sequence."""
        folded_GM = self._folding_GN @ counts_NM
        sums_RDM = np.zeros((len(self._by_domain_RG), len(self._sizes_D), folded_GM.shape[1]))
        for domain, size in enumerate(self._sizes_D):
            members_G = self._domains_G == domain
            sums_RDM[:, domain] = self._by_domain_RG[:, members_G] @ folded_GM[members_G] if size != 1 else np.nan
        return sums_RDM

    def bounds(self, draws: ArrayLike) -> Bounds:
        """Of what is about right with few sequences: [R, ...], by percentiles."""
        low, high = self._percentiles(np.asarray(draws), self._degrees)
        return Bounds(low, high)

    def domain_bounds(self, draws_RD: ArrayLike) -> Bounds:
        """As `bounds`, for [R, D, ...] of which each domain has sequences of its own."""
        ends = [
            self._percentiles(draws_R, size - 1)
            for draws_R, size in zip(np.moveaxis(np.asarray(draws_RD), 1, 0), self._sizes_D, strict=True)
        ]
        return Bounds(np.stack([low for low, _ in ends]), np.stack([high for _, high in ends]))

    def corrected_bounds(
        self, value: ArrayLike, draws: ArrayLike, final: Callable[[Floats], Floats] = lambda values: values
    ) -> Bounds:
        """Of what few sequences make too large or too small, such as any distance: draws [R, ...] are off from `value`
        by as much as it is off from the truth. `final` is applied to what comes out, and must not fall."""
        drawn = np.asarray(draws, dtype=np.float64)
        exact = np.asarray(value, dtype=np.float64)
        low, high = self._percentiles(drawn, self._degrees)
        return Bounds(final(2 * exact - high), final(2 * exact - low), final(2 * exact - drawn.mean(axis=0)))

    @staticmethod
    def _percentiles(draws: Floats, degrees: int) -> tuple[Floats, Floats]:
        if degrees < _LEAST_DEGREES:
            nothing = np.full(draws.shape[1:], np.nan)
            return nothing, nothing
        tail = 100 * float(stats.norm.cdf(stats.t.ppf(0.025, degrees)))
        low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
        return np.asarray(low), np.asarray(high)


def share(part: ArrayLike, whole: ArrayLike) -> Floats:
    """NaN where there is nothing to have a share of."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64))
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0))


def _groups(
    domains_N: NDArray[np.int64], num_domains: int, max_groups: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of each sequence, and the domain of each group."""
    num_sequences = len(domains_N)
    if num_sequences <= max_groups:
        return np.arange(num_sequences), domains_N
    group_N = np.empty(num_sequences, dtype=np.int64)
    domains_G: list[int] = []
    for domain in range(num_domains):
        members = generator.permutation(np.flatnonzero(domains_N == domain))
        size = min(len(members), max(10, max_groups * len(members) // num_sequences))
        group_N[members] = len(domains_G) + np.arange(len(members)) % max(size, 1)
        domains_G += [domain] * size
    return group_N, np.array(domains_G, dtype=np.int64)


def _weights(strata_G: NDArray[np.int64], num_resamples: int, generator: np.random.Generator) -> Floats:
    """[R, G] how much of each group is in each draw; in every stratum as much as there is."""
    weights_RG = np.ones((num_resamples, len(strata_G)))
    for stratum in np.unique(strata_G):
        members = np.flatnonzero(strata_G == stratum)
        size = len(members)
        if size > 1:
            drawn = generator.multinomial(size - 1, np.full(size, 1 / size), size=num_resamples)
            weights_RG[:, members] = drawn * (size / (size - 1))
    return weights_RG
