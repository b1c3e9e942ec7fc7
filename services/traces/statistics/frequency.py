"""How often a domain's tokens go to an expert."""

import numpy as np

from services.traces.statistics.domain_tables import DomainTables
from services.traces.statistics.estimate import Null, NullMethod, matrix, rows
from services.traces.statistics.resamples import share
from services.traces.statistics.results import Frequency


def frequency(tables: DomainTables) -> Frequency:
    """Shares of assignments and of tokens."""
    observed, resampled = tables.observed, tables.resampled
    all_E = observed.assignments.sum(axis=0)
    return Frequency(
        num_sequences=tables.counts.num_sequences,
        num_tokens=int(observed.tokens.sum()),
        share=matrix(
            share(observed.assignments, observed.assignments.sum(axis=1, keepdims=True)),
            tables.resamples.domain_bounds(
                share(resampled.assignments, resampled.assignments.sum(axis=2, keepdims=True))
            ),
            Null(NullMethod.PERMUTED_DOMAINS, share(all_E, all_E.sum())),
        ),
        token_share=rows(share(observed.assignments, observed.tokens[:, None])),
        sequences_by_domain=tuple(np.bincount(tables.counts.domains_N, minlength=tables.num_domains).tolist()),
        tokens_by_domain=tuple(observed.tokens.astype(int).tolist()),
    )
