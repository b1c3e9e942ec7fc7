"""Whether the input token itself decides: Muennighoff et al. 2024 (OLMoE, arXiv:2409.02060), equation 8."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from services.traces.choices import LayerChoices
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import estimate, numbers
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import SpecialisedToken, Vocabulary
from services.traces.statistics.sequence_counts import SequenceCounts
from services.traces.statistics.shuffles import Shuffles, null_of_shuffles

_NUM_STRONGEST: Final = 20
_NUM_RESAMPLES: Final = 100

Floats = NDArray[np.float64]


def vocabulary(
    choices: LayerChoices, counts: SequenceCounts, resamples: Resamples, shuffles: Shuffles, *, min_count: int
) -> Vocabulary:
    """Raises NoSuchFigure where token ids are not known or none comes often enough."""
    if choices.token_ids is None:
        raise NoSuchFigure("the trace does not tell token ids")
    ids, id_T, count_I = np.unique(choices.token_ids, return_inverse=True, return_counts=True)
    frequent_I = count_I >= min_count
    if not frequent_I.any():
        raise NoSuchFigure(f"no token id comes {min_count} times")
    number_I = np.cumsum(frequent_I) - 1
    kept_T = frequent_I[id_T]
    occurrences = _Occurrences(choices, np.where(kept_T, number_I[id_T], -1), int(frequent_I.sum()))
    table_XE = occurrences.table()
    observed = mean_specialisation(table_XE)
    best_X, share_X = table_XE.argmax(axis=1), share(table_XE.max(axis=1), table_XE.sum(axis=1))
    ids_X, count_X = ids[frequent_I], count_I[frequent_I]
    strongest = np.lexsort((-count_X, -share_X))[:_NUM_STRONGEST]
    sums_E = np.bincount(best_X, share_X, minlength=choices.num_experts)
    return Vocabulary(
        num_sequences=counts.num_sequences,
        num_tokens=int(kept_T.sum()),
        specialisation=estimate(
            observed,
            resamples.corrected_bounds(observed, occurrences.resampled(resamples), lambda values: values.clip(0, 1)),
            null_of_shuffles(observed, [mean_specialisation(occurrences.table(order)) for order in shuffles]),
        ),
        min_count=min_count,
        num_ids=len(ids_X),
        by_expert=numbers(share(sums_E, np.bincount(best_X, minlength=choices.num_experts))),
        strongest=tuple(
            SpecialisedToken(
                token_id=int(ids_X[place]),
                expert=int(best_X[place]),
                share=float(share_X[place]),
                count=int(count_X[place]),
            )
            for place in strongest
        ),
    )


def mean_specialisation(table_XE: Floats) -> float:
    """Over ids, of the largest share that one expert has; ids that do not come do not count, NaN if none does."""
    counts_X = table_XE.sum(axis=1)
    come = counts_X > 0
    return float(share(np.sum(table_XE[come].max(axis=1) / counts_X[come]), np.count_nonzero(come)))


class _Occurrences:
    """Of X token ids, each with its first choice. `number_T` is -1 for other tokens."""

    def __init__(self, choices: LayerChoices, number_T: NDArray[np.int64], num_ids: int) -> None:
        self._shape = (num_ids, choices.num_experts)
        self._first_T = choices.experts[:, 0]
        self._places = np.flatnonzero(number_T >= 0)
        self._numbers = number_T[self._places]
        self._sequences = choices.sequences[self._places]

    def table(self, order: NDArray[np.integer] | None = None) -> Floats:
        """[X, E], with the first choices in another order."""
        first_T = self._first_T if order is None else self._first_T[order]
        cells = self._numbers * self._shape[1] + first_T[self._places]
        return np.bincount(cells, minlength=self._shape[0] * self._shape[1]).reshape(self._shape).astype(np.float64)

    def resampled(self, resamples: Resamples) -> Floats:
        """[R] mean specialisation of sequences drawn anew."""
        if not resamples.degrees:
            return np.full(_NUM_RESAMPLES, np.nan)
        cells = self._numbers * self._shape[1] + self._first_T[self._places]
        counts_GC = sparse.csr_array(
            (np.ones(len(cells)), (resamples.groups[self._sequences], cells)),
            shape=(resamples.weights.shape[1], self._shape[0] * self._shape[1]),
        )
        # One table at a time: with many ids it is large.
        return np.array([
            mean_specialisation(np.reshape(weights_G @ counts_GC, self._shape))
            for weights_G in resamples.weights[:_NUM_RESAMPLES]
        ])  # fmt: skip
