"""Whether the experts depend on the domain: chi-square, Cramer's V and a test that knows what depends on what."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from services.traces.statistics.domain_tables import DomainTables
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import estimate, number
from services.traces.statistics.permutations import null_of_permutations
from services.traces.statistics.resamples import share
from services.traces.statistics.results import Independence

Floats = NDArray[np.float64]


def independence(tables: DomainTables) -> Independence:
    """Raises NoSuchFigure where fewer than two domains or experts are in use."""
    table_DE = tables.observed.assignments
    num_rows, num_columns = (int(np.count_nonzero(table_DE.sum(axis=axis))) for axis in (1, 0))
    smaller = min(num_rows, num_columns)
    if smaller < 2:
        raise NoSuchFigure("it takes two domains and two experts that are in use")
    total = table_DE.sum()
    phi_square = mean_square_contingency(table_DE)
    degrees = (num_rows - 1) * (num_columns - 1)

    def v(values: Floats) -> Floats:
        return cramers_v(values, num_rows, num_columns, total)

    return Independence(
        num_sequences=tables.counts.num_sequences,
        num_tokens=int(tables.observed.tokens.sum()),
        cramers_v=estimate(
            v(phi_square),
            tables.resamples.corrected_bounds(
                phi_square,
                mean_square_contingency(tables.resampled.assignments),
                lambda values: np.sqrt(np.clip(values, 0, None) / (smaller - 1)),
            ),
            null_of_permutations(v(phi_square), v(mean_square_contingency(tables.permuted.assignments)))
            if tables.permuted
            else None,
        ),
        cramers_v_uncorrected=number(np.sqrt(phi_square / (smaller - 1))),
        chi_square=number(total * phi_square),
        degrees_of_freedom=degrees,
        token_p_value=number(stats.chi2.sf(total * phi_square, degrees)),
    )


def mean_square_contingency(tables: Floats) -> Floats:
    """Chi-square over n, of [..., D, E]; NaN for a table with NaN."""
    rows = tables.sum(axis=-1, keepdims=True)
    columns = tables.sum(axis=-2, keepdims=True)
    parts = np.divide(tables**2, rows * columns, out=np.zeros_like(tables), where=rows * columns != 0)
    return np.asarray(parts.sum(axis=(-1, -2)) - 1)


def cramers_v(phi_square: Floats, num_rows: int, num_columns: int, total: float) -> Floats:
    """With the correction of Bergsma 2013 (doi:10.1016/j.jkss.2012.10.002): 0 is expected of independent counts."""
    corrected = np.clip(phi_square - (num_rows - 1) * (num_columns - 1) / (total - 1), 0, None)
    smaller = min(size - (size - 1) ** 2 / (total - 1) for size in (num_rows, num_columns))
    return np.sqrt(share(corrected, smaller - 1))
