"""A share of pairs that depends on the order of tokens, such as how often two neighbours have the same expert."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.traces.statistics.estimate import Bounds, Estimate, Null, Series, estimate, false_discovery_rates, series
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.shuffles import ShuffledSums

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OrderedShare:
    """Sums over the pairs of each of N sequences, M shares at a time."""

    part_NM: Floats
    whole_NM: Floats
    """The same in every order."""
    shuffled: ShuffledSums
    """`part_NM` in other orders."""
    resamples: Resamples

    @property
    def values(self) -> Floats:
        """[M] as counted."""
        return share(self.part_NM.sum(axis=0), self.whole_NM.sum(axis=0))

    @property
    def draws(self) -> Floats:
        """[R, M] of sequences drawn anew."""
        return share(self.resamples.totals(self.part_NM), self.resamples.totals(self.whole_NM))

    @property
    def null(self) -> Null:
        """Of the [M] shares, with q over them."""
        null = self.shuffled.null(self.values, self.whole_NM.sum(axis=0))
        return _with_q(null) if len(self.values) > 1 else null

    def estimate(self) -> Estimate:
        """Of the first of the shares, or the only one."""
        bounds = self.resamples.bounds(self.draws[:, 0])
        return estimate(self.values[0], bounds, first_of(self.null))

    def series(self) -> Series:
        """Of all shares."""
        return series(self.values, self.resamples.bounds(self.draws), self.null)

    def by_domain(self, domains_N: NDArray[np.int64], num_domains: int) -> Series:
        """Of the first of the shares, or the only one, in each domain, [D]."""
        among_DN = (domains_N == np.arange(num_domains)[:, None]).astype(np.float64)
        part_N1, whole_N1 = self.part_NM[:, :1], self.whole_NM[:, :1]
        whole_D = (among_DN @ whole_N1)[:, 0]
        value_D = share((among_DN @ part_N1)[:, 0], whole_D)
        draws_RD1 = share(self.resamples.by_domain(part_N1), self.resamples.by_domain(whole_N1))
        bounds: Bounds = self.resamples.domain_bounds(draws_RD1[..., 0])
        return series(value_D, bounds, _with_q(self.shuffled.of(slice(0, 1)).null(value_D, whole_D, among_DN)))


def first_of(null: Null) -> Null:
    """Of a null of several, the first."""
    return Null(null.method, *(np.asarray(each)[0] for each in (null.value, null.low, null.high, null.p_value)))


def _with_q(null: Null) -> Null:
    p_value = null.p_value if null.p_value is not None else ()
    return Null(null.method, null.value, null.low, null.high, p_value, false_discovery_rates(p_value))
