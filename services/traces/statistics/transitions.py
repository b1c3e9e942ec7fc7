"""From the first choice of a token to that of the next, as a Markov chain."""

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import LayerChoices
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.estimate import Null, NullMethod, estimate, matrix, number, numbers
from services.traces.statistics.markov_chain import probabilities, second_eigenvalue, stationary, total_variation
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import Transitions
from services.traces.statistics.sequence_counts import SequenceCounts
from services.traces.statistics.shuffles import Shuffles, null_of_shuffles

Floats = NDArray[np.float64]


def transitions(choices: LayerChoices, counts: SequenceCounts, resamples: Resamples, shuffles: Shuffles) -> Transitions:
    """Over the neighbours of all sequences. Raises NoSuchFigure where there is none, or but one expert."""
    num_experts = choices.num_experts
    if num_experts < 2 or counts.tokens_N.max() < 2:
        raise NoSuchFigure("it takes two experts, and a sequence of two tokens")
    cells, sequences = _cells(choices, choices.experts[:, 0])
    counts_GC = resamples.counted(sequences, cells, num_experts**2)
    counts_EE = counts_GC.sum(axis=0).reshape(num_experts, num_experts)
    first_E = counts.first_NE.sum(axis=0)
    drawn_REE = resamples.group_totals(counts_GC).reshape(-1, num_experts, num_experts)
    drawn_RE = resamples.totals(counts.first_NE)
    shuffled_SEE = [_shuffled_counts(choices, order) for order in shuffles]
    second = second_eigenvalue(counts_EE)
    distance = _stationary_distance(counts_EE, first_E)
    known = np.isfinite(drawn_REE).all()
    return Transitions(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        probability=matrix(
            probabilities(counts_EE),
            resamples.bounds(probabilities(drawn_REE)),
            Null(NullMethod.POPULARITY, share(counts_EE.sum(axis=0), counts_EE.sum())),
        ),
        counts=tuple(tuple(row) for row in counts_EE.astype(int).tolist()),
        stationary=numbers(stationary(counts_EE)),
        marginal=numbers(share(first_E, first_E.sum())),
        stationary_distance=estimate(
            distance,
            resamples.corrected_bounds(
                distance,
                np.array([_stationary_distance(*each) for each in zip(drawn_REE, drawn_RE, strict=True)]),
                lambda values: np.clip(values, 0, 1),
            )
            if known
            else None,
            null_of_shuffles(distance, [_stationary_distance(each, first_E) for each in shuffled_SEE]),
        ),
        second_eigenvalue=estimate(
            second,
            null=null_of_shuffles(second, [second_eigenvalue(each) for each in shuffled_SEE]),
        ),
        mixing_tokens=number(share(1, 1 - second)),
    )


def _stationary_distance(counts_EE: Floats, first_E: Floats) -> float:
    return total_variation(stationary(counts_EE), share(first_E, first_E.sum()))


def _shuffled_counts(choices: LayerChoices, order: NDArray[np.integer]) -> Floats:
    cells, _ = _cells(choices, choices.experts[order, 0])
    size = choices.num_experts
    return np.bincount(cells, minlength=size * size).reshape(size, size).astype(np.float64)


def _cells(choices: LayerChoices, first_T: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row * E + column of every pair of neighbours, and the sequence that it is in."""
    sequences_T = choices.sequences
    within = sequences_T[1:] == sequences_T[:-1]
    cells = first_T[:-1].astype(np.int64) * choices.num_experts + first_T[1:]
    return cells[within], sequences_T[:-1][within]
