"""Whether a token's experts foretell those some tokens later."""

from services.traces.statistics.estimate import number
from services.traces.statistics.information import popularity
from services.traces.statistics.neighbours import Neighbours
from services.traces.statistics.results import Autocorrelation
from services.traces.statistics.sequence_counts import SequenceCounts


def autocorrelation(counts: SequenceCounts, neighbours: Neighbours) -> Autocorrelation:
    """At lags of 1 token and more."""
    return Autocorrelation(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        lags=tuple(range(1, neighbours.num_lags + 1)),
        repetition=neighbours.same_first.series(),
        indicator=neighbours.correlation.series(),
        popularity=number(popularity(counts.first_NE.sum(axis=0))),
    )
