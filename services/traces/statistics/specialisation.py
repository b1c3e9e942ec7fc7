"""Which expert is whose: Muennighoff et al. 2024 (OLMoE, arXiv:2409.02060), equation 7, and lift."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.traces.statistics.domain_tables import DomainTables, Tables
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import Null, NullMethod, false_discovery_rates, matrix
from services.traces.statistics.permutations import null_of_cells
from services.traces.statistics.resamples import share
from services.traces.statistics.results import Specialisation

Floats = NDArray[np.float64]


def specialisation(tables: DomainTables, top_k: int) -> Specialisation:
    """Of every domain and expert. Raises NoSuchFigure where there are not two domains."""
    if len(tables.present) < 2:
        raise NoSuchFigure("it takes two domains")
    shares_DE, lifts_DE = _token_shares(tables.observed), _lifts(tables.observed)
    resamples = tables.resamples
    return Specialisation(
        num_sequences=tables.counts.num_sequences,
        num_tokens=int(tables.observed.tokens.sum()),
        token_share=matrix(
            shares_DE,
            resamples.domain_bounds(_token_shares(tables.resampled)),
            _null(shares_DE, _token_shares(tables.permuted)) if tables.permuted else None,
        ),
        lift=matrix(
            lifts_DE,
            resamples.domain_bounds(_lifts(tables.resampled)),
            _null(lifts_DE, _lifts(tables.permuted)) if tables.permuted else Null(NullMethod.POPULARITY, 1.0),
        ),
        uniform=top_k / shares_DE.shape[1],
    )


def _token_shares(tables: Tables) -> Floats:
    return share(tables.assignments, tables.tokens[..., None])


def _lifts(tables: Tables) -> Floats:
    in_domain = share(tables.assignments, tables.assignments.sum(axis=-1, keepdims=True))
    anywhere = share(tables.assignments.sum(axis=-2), tables.assignments.sum(axis=(-1, -2))[..., None])
    return share(in_domain, anywhere[..., None, :])


def _null(values_DE: Floats, permuted_PDE: Floats) -> Null:
    null = null_of_cells(values_DE, permuted_PDE)
    return replace(null, q_value=false_discovery_rates(null.p_value if null.p_value is not None else ()))
