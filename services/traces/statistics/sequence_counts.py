"""What is left of tokens once they are counted: per sequence, [N, ...]."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY, LayerChoices

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SequenceCounts:
    """Of N sequences that have a token."""

    domains_N: NDArray[np.int64]
    tokens_N: Floats
    assignments_NE: Floats
    """Tokens that have the expert among their choices."""
    first_NE: Floats
    """Tokens that have it as their first."""

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.domains_N)


def without_empty_sequences(choices: LayerChoices) -> LayerChoices:
    """The sequences that have a token."""
    kept = np.flatnonzero(np.diff(choices.starts))
    return choices.of_sequences(kept)


def sequence_counts(choices: LayerChoices) -> SequenceCounts:
    """Of choices whose sequences all have a token."""
    sequences_T = choices.sequences
    shape = (choices.num_sequences, choices.num_experts)
    assignments_NE = np.zeros(shape)
    first_NE = np.zeros(shape)
    # Rank by rank: no array is larger than the choices themselves.
    for rank in range(choices.experts.shape[1]):
        experts_T = choices.experts[:, rank]
        chosen = experts_T != NOBODY
        cells = sequences_T[chosen] * shape[1] + experts_T[chosen]
        counted_NE = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        assignments_NE += counted_NE
        if rank == 0:
            first_NE += counted_NE
    return SequenceCounts(choices.domains, np.diff(choices.starts).astype(np.float64), assignments_NE, first_NE)
