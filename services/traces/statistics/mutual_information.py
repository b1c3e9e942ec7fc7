"""What an assignment tells of the domain."""

import numpy as np

from services.traces.statistics.domain_tables import DomainTables
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import estimate, number
from services.traces.statistics.information import entropy_bits, mutual_information_bits
from services.traces.statistics.permutations import null_of_permutations
from services.traces.statistics.resamples import share
from services.traces.statistics.results import MutualInformation


def mutual_information(tables: DomainTables) -> MutualInformation:
    """I(domain; expert) of the table of assignments. Raises NoSuchFigure where there are not two domains."""
    if len(tables.present) < 2:
        raise NoSuchFigure("it takes two domains")
    table_DE = tables.observed.assignments
    bits = mutual_information_bits(table_DE)
    return MutualInformation(
        num_sequences=tables.counts.num_sequences,
        num_tokens=int(tables.observed.tokens.sum()),
        bits=estimate(
            bits,
            tables.resamples.corrected_bounds(
                bits, mutual_information_bits(tables.resampled.assignments), lambda values: np.clip(values, 0, None)
            ),
            null_of_permutations(bits, mutual_information_bits(tables.permuted.assignments))
            if tables.permuted
            else None,
        ),
        share_of_domain_entropy=number(share(bits, entropy_bits(table_DE.sum(axis=1)))),
    )
