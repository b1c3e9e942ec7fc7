"""How many experts are in use."""

import numpy as np

from services.traces.statistics.domain_tables import DomainTables
from services.traces.statistics.estimate import Null, NullMethod, estimate, series
from services.traces.statistics.information import entropy_bits
from services.traces.statistics.results import Entropy


def entropy(tables: DomainTables) -> Entropy:
    """Of the shares of assignments, over all domains and in each."""
    table_DE = tables.observed.assignments
    num_experts = table_DE.shape[1]
    bits = entropy_bits(table_DE.sum(axis=0))
    drawn_R = entropy_bits(tables.resamples.totals(tables.counts.assignments_NE))
    resamples = tables.resamples
    return Entropy(
        num_sequences=tables.counts.num_sequences,
        num_tokens=int(tables.observed.tokens.sum()),
        bits=estimate(
            bits,
            resamples.corrected_bounds(bits, drawn_R, lambda values: np.clip(values, 0, np.log2(num_experts))),
            Null(NullMethod.UNIFORM, np.log2(num_experts)),
        ),
        effective_experts=estimate(
            2**bits,
            resamples.corrected_bounds(bits, drawn_R, lambda values: np.clip(2**values, 1, num_experts)),
            Null(NullMethod.UNIFORM, num_experts),
        ),
        bits_by_domain=series(
            entropy_bits(table_DE),
            resamples.domain_bounds(entropy_bits(tables.resampled.assignments)),
            Null(NullMethod.UNIFORM, np.log2(num_experts)),
        ),
    )
