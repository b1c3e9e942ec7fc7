"""How many tokens in a row have the same first choice."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.traces.choices import LayerChoices
from services.traces.statistics.estimate import Null, NullMethod, estimate, series
from services.traces.statistics.neighbours import Neighbours
from services.traces.statistics.ordered_share import first_of
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import RunLengths
from services.traces.statistics.sequence_counts import SequenceCounts

Floats = NDArray[np.float64]


def run_lengths(
    choices: LayerChoices, counts: SequenceCounts, neighbours: Neighbours, resamples: Resamples, *, longest: int
) -> RunLengths:
    """Ended by another first choice or by the end of the sequence."""
    runs_NH = _histograms(choices, longest)
    tokens_N1 = counts.tokens_N[:, None]
    num_runs_N1 = runs_NH.sum(axis=1, keepdims=True)
    mean = counts.tokens_N.sum() / num_runs_N1.sum()
    drawn_R = share(resamples.totals(tokens_N1), resamples.totals(num_runs_N1))[:, 0]
    return RunLengths(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        mean=estimate(mean, resamples.bounds(drawn_R), _null_of_mean(counts, neighbours)),
        lengths=tuple(range(1, longest + 1)),
        share=series(
            share(runs_NH.sum(axis=0), runs_NH.sum()),
            resamples.bounds(share(resamples.totals(runs_NH), resamples.totals(num_runs_N1))),
            Null(NullMethod.POPULARITY, geometric_lengths(counts.first_NE.sum(axis=0), longest)),
        ),
    )


def geometric_lengths(first_E: Floats, longest: int) -> Floats:
    """[longest] shares of runs if each token's first choice were made for itself: a run of expert e begins where
    another ends, p_e (1 - p_e) often, and goes on with p_e. The last is for all that are as long or longer."""
    p_E1 = share(first_E, first_E.sum())[:, None]
    begins_E1 = p_E1 * (1 - p_E1)
    lengths_H = np.arange(1, longest + 1)
    ends_EH = np.where(lengths_H < longest, 1 - p_E1, 1.0)
    return share((begins_E1 * p_E1 ** (lengths_H - 1) * ends_EH).sum(axis=0), begins_E1.sum())


def _histograms(choices: LayerChoices, longest: int) -> Floats:
    """[N, longest] runs by length."""
    first_T = choices.experts[:, 0]
    begins = np.empty(choices.num_tokens, dtype=np.bool_)
    begins[1:] = first_T[1:] != first_T[:-1]
    begins[choices.starts[:-1]] = True
    places = np.flatnonzero(begins)
    lengths = np.minimum(np.diff(np.append(places, choices.num_tokens)), longest)
    cells = choices.sequences[places] * longest + lengths - 1
    return np.bincount(cells, minlength=choices.num_sequences * longest).reshape(-1, longest).astype(np.float64)


def _null_of_mean(counts: SequenceCounts, neighbours: Neighbours) -> Null:
    """There are as many runs as tokens that do not repeat the one before, so the mean length's null and its test are
    those of repetition."""
    null = first_of(neighbours.same_first.null)
    num_tokens = counts.tokens_N.sum()
    num_pairs = num_tokens - counts.num_sequences

    def mean_length(repeated: ArrayLike) -> Floats:
        return share(num_tokens, num_tokens - num_pairs * np.asarray(repeated))

    return Null(
        method=null.method,
        value=mean_length(null.value),
        low=mean_length(null.low if null.low is not None else np.nan),
        high=mean_length(null.high if null.high is not None else np.nan),
        p_value=null.p_value,
    )
