"""Of a token's experts, those that the token before had too."""

from services.traces.statistics.neighbours import Neighbours
from services.traces.statistics.results import Overlap
from services.traces.statistics.sequence_counts import SequenceCounts


def overlap(counts: SequenceCounts, neighbours: Neighbours, *, top_k: int) -> Overlap:
    """|S_t and S_t-1| / K over neighbours."""
    return Overlap(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        share=neighbours.overlap.estimate(),
        random=top_k / counts.first_NE.shape[1],
    )
