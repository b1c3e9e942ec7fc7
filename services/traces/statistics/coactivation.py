"""Experts chosen together: Muennighoff et al. 2024 (OLMoE, arXiv:2409.02060), equation 6."""

from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY, LayerChoices
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import Null, NullMethod, matrix, number, rows
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import Coactivation, Pair
from services.traces.statistics.sequence_counts import SequenceCounts

_NUM_STRONGEST: Final = 10

Floats = NDArray[np.float64]


def coactivation(choices: LayerChoices, counts: SequenceCounts, resamples: Resamples) -> Coactivation:
    """Raises NoSuchFigure where tokens have one expert each."""
    top_k = choices.experts.shape[1]
    if top_k < 2:
        raise NoSuchFigure("it takes two experts a token")
    together_GC = adjacent_GC = np.zeros(1)
    for one, other in combinations(range(top_k), 2):
        pairs_GC = _pairs(choices, resamples, one, other)
        together_GC = together_GC + pairs_GC
        if other == one + 1:
            adjacent_GC = adjacent_GC + pairs_GC
    chosen_E = counts.assignments_NE.sum(axis=0)
    probability_EE = _given(together_GC.sum(axis=0), chosen_E)
    bounds = resamples.bounds(_given(resamples.group_totals(together_GC), resamples.totals(counts.assignments_NE)))
    null_EE = _by_popularity(chosen_E, counts.tokens_N.sum())
    return Coactivation(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        probability=matrix(probability_EE, bounds, Null(NullMethod.POPULARITY, null_EE)),
        adjacent_ranks=rows(_given(adjacent_GC.sum(axis=0), chosen_E)),
        strongest=tuple(
            Pair(
                expert=int(row),
                other=int(column),
                value=number(probability_EE[row, column]),
                low=number(np.asarray(bounds.low)[row, column]),
                high=number(np.asarray(bounds.high)[row, column]),
                null=number(null_EE[row, column]),
            )
            for row, column in _strongest(probability_EE - null_EE)
        ),
    )


def _pairs(choices: LayerChoices, resamples: Resamples, one: int, other: int) -> Floats:
    """[G, E * E] tokens that have the row's expert at rank `one` and the column's at rank `other`."""
    first_T, second_T = choices.experts[:, one], choices.experts[:, other]
    both = (first_T != NOBODY) & (second_T != NOBODY)
    cells = first_T[both].astype(np.int64) * choices.num_experts + second_T[both]
    return resamples.counted(choices.sequences[both], cells, choices.num_experts**2)


def _given(pairs: Floats, chosen: Floats) -> Floats:
    """N_ij / N_i, [..., E, E], of pairs of ranks [..., E * E], in either order; an expert with itself says nothing."""
    size = chosen.shape[-1]
    ranked = pairs.reshape(*pairs.shape[:-1], size, size)
    given = share(ranked + np.swapaxes(ranked, -1, -2), chosen[..., :, None])
    return np.where(np.eye(size, dtype=np.bool_), np.nan, given)


def _by_popularity(chosen_E: Floats, num_tokens: float) -> Floats:
    """[E, E] a token of the row's expert shares its other choices out among the others by their popularity."""
    token_share_E = share(chosen_E, num_tokens)
    at_once = token_share_E.sum()
    null_EE = (at_once - 1) * share(token_share_E, (at_once - token_share_E)[:, None])
    return np.where(np.eye(len(chosen_E), dtype=np.bool_), np.nan, null_EE)


def _strongest(excess_EE: Floats) -> NDArray[np.int64]:
    """[n, 2]"""
    known = np.nan_to_num(excess_EE, nan=-np.inf)
    order = np.argsort(-known, axis=None, kind="stable")[:_NUM_STRONGEST]
    places = np.column_stack(np.unravel_index(order, excess_EE.shape))
    return places[np.isfinite(excess_EE[places[:, 0], places[:, 1]])]
