"""How far apart domains are in the experts that they use."""

from dataclasses import replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.traces.statistics.domain_tables import DomainTables
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import Null, estimate, false_discovery_rates, matrix
from services.traces.statistics.information import divergence_bits
from services.traces.statistics.permutations import null_of_permutations
from services.traces.statistics.results import Divergence

_CELLS: Final = 20_000_000
_LEAST_DRAWS: Final = 199

Floats = NDArray[np.float64]


def divergence(tables: DomainTables) -> Divergence:
    """Jensen-Shannon distances between all domains. Raises NoSuchFigure where there are not two."""
    num_pairs = len(tables.present) * (len(tables.present) - 1) // 2
    if not num_pairs:
        raise NoSuchFigure("it takes two domains")
    observed_DD = divergences(tables.observed.assignments)
    # Many domains have many pairs: fewer draws of each then.
    draws = max(_LEAST_DRAWS, _CELLS // (num_pairs * tables.observed.assignments.shape[1]))
    resampled_RDD = divergences(tables.resampled.assignments[:draws])
    permuted_PDD = divergences(tables.permuted.assignments[:draws]) if tables.permuted else None
    mean = _mean_over_pairs(observed_DD, tables.present)
    return Divergence(
        num_sequences=tables.counts.num_sequences,
        num_tokens=int(tables.observed.tokens.sum()),
        distance=matrix(
            np.sqrt(observed_DD),
            tables.resamples.corrected_bounds(observed_DD, resampled_RDD, _root),
            _null(observed_DD, permuted_PDD) if permuted_PDD is not None else None,
        ),
        mean_distance=estimate(
            np.sqrt(mean),
            tables.resamples.corrected_bounds(mean, _mean_over_pairs(resampled_RDD, tables.present), _root),
            null_of_permutations(np.sqrt(mean), np.sqrt(_mean_over_pairs(permuted_PDD, tables.present)))
            if permuted_PDD is not None
            else None,
        ),
    )


def divergences(tables: Floats) -> Floats:
    """Bits between all rows of [..., D, E], [..., D, D]; NaN beside a row of zeros."""
    num_rows = tables.shape[-2]
    between = np.zeros((*tables.shape[:-2], num_rows, num_rows))
    for first, second in combinations(range(num_rows), 2):
        # Rounding may leave a little less than nothing.
        bits = np.clip(divergence_bits(tables[..., first, :], tables[..., second, :]), 0, 1)
        between[..., first, second] = between[..., second, first] = bits
    return between


def _null(observed_DD: Floats, permuted_PDD: Floats) -> Null:
    null = null_of_permutations(np.sqrt(observed_DD), np.sqrt(permuted_PDD))
    above = np.triu_indices(len(observed_DD), 1)
    p_value, q_value = np.full((2, *observed_DD.shape), np.nan)
    p_value[above] = np.where(np.isfinite(observed_DD[above]), np.asarray(null.p_value)[above], np.nan)
    q_value[above] = false_discovery_rates(p_value[above])
    return replace(null, p_value=np.fmax(p_value, p_value.T), q_value=np.fmax(q_value, q_value.T))


def _mean_over_pairs(between: Floats, present: NDArray[np.int64]) -> Floats:
    """Of the domains that there are."""
    first, second = np.triu_indices(len(present), 1)
    return np.asarray(between[..., present[first], present[second]].mean(axis=-1))


def _root(bits: Floats) -> Floats:
    return np.sqrt(np.clip(bits, 0, None))
