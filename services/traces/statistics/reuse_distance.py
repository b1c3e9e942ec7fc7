"""Tokens between two uses of an expert within a sequence."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY, LayerChoices
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import number, series
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import ReuseDistance
from services.traces.statistics.sequence_counts import SequenceCounts
from services.traces.statistics.shuffles import Shuffles, null_of_shuffles

_PERCENTILES: Final = (10.0, 25.0, 50.0, 75.0, 90.0, 99.0)
_LONGEST: Final = 4096
"""Longer ones count as this long."""

Floats = NDArray[np.float64]


def reuse_distance(
    choices: LayerChoices, counts: SequenceCounts, resamples: Resamples, shuffles: Shuffles
) -> ReuseDistance:
    """Raises NoSuchFigure where no sequence uses an expert twice."""
    uses = _Uses(choices)
    distances, sequences = uses.distances()
    if not len(distances):
        raise NoSuchFigure("no sequence uses an expert twice")
    longest = min(int(distances.max()), _LONGEST)
    counts_GH = resamples.counted(sequences, np.minimum(distances, longest) - 1, longest)
    shuffled_SQ = [
        _percentiles(np.bincount(np.minimum(uses.distances(order)[0], _LONGEST) - 1).astype(np.float64))
        for order in shuffles
    ]
    observed_Q = _percentiles(counts_GH.sum(axis=0))
    return ReuseDistance(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        percentiles=_PERCENTILES,
        tokens=series(
            observed_Q,
            resamples.bounds(_percentiles(resamples.group_totals(counts_GH))),
            null_of_shuffles(observed_Q, shuffled_SQ),
        ),
        first_uses=number(share(np.count_nonzero(counts.assignments_NE), counts.assignments_NE.sum())),
    )


class _Uses:
    """Every expert of every token, sorted by sequence and expert."""

    def __init__(self, choices: LayerChoices) -> None:
        tokens, ranks = np.nonzero(choices.experts != NOBODY)
        keys = choices.sequences[tokens] * choices.num_experts + choices.experts[tokens, ranks]
        by_key = np.argsort(keys, kind="stable")
        self._tokens = tokens[by_key]
        self._sequences = choices.sequences[self._tokens]
        keys = keys[by_key]
        self._again = keys[1:] == keys[:-1]
        self._keys = keys

    def distances(self, order: NDArray[np.integer] | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each use that is not the first, and the sequence that it is in."""
        places = self._tokens
        if order is not None:
            place_T = np.empty(len(order), dtype=np.int64)
            place_T[order] = np.arange(len(order))
            # Within a key only: a place is smaller than the number of all tokens.
            sortable = np.sort(self._keys * len(order) + place_T[self._tokens])
            places = sortable % len(order)
        return (places[1:] - places[:-1])[self._again], self._sequences[1:][self._again]


def _percentiles(counts: Floats) -> Floats:
    """[..., Q] of histograms [..., H] whose first bin is distance 1; NaN of NaN."""
    reached = np.cumsum(counts, axis=-1)
    found = [
        1.0 + np.sum(reached < percentile / 100 * reached[..., -1:] - 1e-9, axis=-1) for percentile in _PERCENTILES
    ]
    return np.where(np.isfinite(reached[..., -1:]), np.stack(found, axis=-1), np.nan)
