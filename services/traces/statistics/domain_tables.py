"""Tables domain x expert: the one that was counted, and what permutations and draws of sequences make of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.traces.statistics.permutations import DomainPermutations
from services.traces.statistics.resamples import Resamples
from services.traces.statistics.sequence_counts import SequenceCounts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Assignments [..., D, E] and the tokens that they are of, [..., D]."""

    assignments: Floats
    tokens: Floats

    @classmethod
    def of(cls, sums: Floats) -> "Tables":
        """[..., D, E + 1], tokens last."""
        return cls(sums[..., :-1], sums[..., -1])


@dataclass(frozen=True)
class DomainTables:
    """D domains; those without a sequence have rows of zeros."""

    counts: SequenceCounts
    observed: Tables
    permuted: Tables | None
    """[P, D, E]; None where there is nothing to permute."""
    resampled: Tables
    """[R, D, E]; NaN in the row of a domain of one sequence."""
    resamples: Resamples

    @property
    def num_domains(self) -> int:
        """D."""
        return len(self.observed.tokens)

    @property
    def present(self) -> NDArray[np.int64]:
        """Domains that have sequences."""
        return np.flatnonzero(self.observed.tokens)


def domain_tables(
    counts: SequenceCounts, num_domains: int, resamples: Resamples, permutations: DomainPermutations
) -> DomainTables:
    """Everything that is asked of domains and experts comes from these."""
    sums_NM = np.column_stack((counts.assignments_NE, counts.tokens_N))
    observed_DM = np.zeros((num_domains, sums_NM.shape[1]))
    np.add.at(observed_DM, counts.domains_N, sums_NM)
    return DomainTables(
        counts=counts,
        observed=Tables.of(observed_DM),
        permuted=Tables.of(permutations.by_domain(sums_NM)) if permutations.is_possible else None,
        resampled=Tables.of(resamples.by_domain(sums_NM)),
        resamples=resamples,
    )
