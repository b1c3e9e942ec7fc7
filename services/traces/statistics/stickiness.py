"""Repetition of the first choice beside what popular experts explain."""

from services.traces.statistics.estimate import Null, NullMethod, estimate
from services.traces.statistics.information import popularity
from services.traces.statistics.neighbours import Neighbours
from services.traces.statistics.resamples import Resamples
from services.traces.statistics.results import Stickiness
from services.traces.statistics.sequence_counts import SequenceCounts


def stickiness(counts: SequenceCounts, neighbours: Neighbours, resamples: Resamples) -> Stickiness:
    """At lag 1."""
    same_first = neighbours.same_first
    repeated, repeated_R = same_first.values[0], same_first.draws[:, 0]
    popular, popular_R = popularity(counts.first_NE.sum(axis=0)), popularity(resamples.totals(counts.first_NE))
    return Stickiness(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        repetition=same_first.estimate(),
        popularity=estimate(
            popular,
            resamples.corrected_bounds(popular, popular_R),
            Null(NullMethod.UNIFORM, 1 / counts.first_NE.shape[1]),
        ),
        excess=estimate(
            repeated - popular,
            resamples.corrected_bounds(repeated - popular, repeated_R - popular_R),
            Null(NullMethod.POPULARITY, 0.0),
        ),
        excess_within=neighbours.same_first_beyond.estimate(),
    )
