"""Which columns of a release have seen a pair of tokens, and how much more likely it is to them.

The index is a list of sorted segments. A newcomer brings a segment of its own pairs; neighbours of like size are
merged, so that E experts stand in about log2 E segments and the next one costs what it brings. Segments are immutable
and shared between releases. The last column, the base's, is written as -1, so that newcomers can stand before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

LAST_COLUMN: Final = -1

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairSegment:
    """Sorted, distinct pair keys; each with the run of (column, gain in nats) of those who have seen it."""

    pair_keys_K: Ints
    starts: Ints
    columns_N: Ints
    gains_N: Floats

    @classmethod
    def of(cls, pair_keys_N: Ints, columns_N: Ints, gains_N: Floats) -> "PairSegment":
        """From one entry per pair and column, in any order."""
        order = np.argsort(pair_keys_N, kind="stable")  # nearly free where sorted runs follow one another
        sorted_keys_N = pair_keys_N[order]
        pair_keys_K, starts = np.unique(sorted_keys_N, return_index=True)
        return cls(pair_keys_K, np.append(starts, len(order)), columns_N[order], gains_N[order])

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays."""
        return self.pair_keys_K.nbytes + self.starts.nbytes + self.columns_N.nbytes + self.gains_N.nbytes

    def merged_with(self, other: "PairSegment") -> "PairSegment":
        """One segment of the entries of both."""
        return PairSegment.of(
            np.concatenate([self._entry_keys, other._entry_keys]),
            np.concatenate([self.columns_N, other.columns_N]),
            np.concatenate([self.gains_N, other.gains_N]),
        )

    def add_gains(self, log_evidence_TE: Floats, keys_T: Ints) -> None:
        """Add to each row the gains of those who have seen its pair."""
        if not len(self.pair_keys_K):
            return
        at_T = np.minimum(np.searchsorted(self.pair_keys_K, keys_T), len(self.pair_keys_K) - 1)
        seen_by_T = np.where(self.pair_keys_K[at_T] == keys_T, self.starts[at_T + 1] - self.starts[at_T], 0)
        run_ends_T = np.cumsum(seen_by_T)
        entries = np.arange(run_ends_T[-1] if len(run_ends_T) else 0)
        entries += np.repeat(self.starts[at_T] - (run_ends_T - seen_by_T), seen_by_T)
        rows = np.repeat(np.arange(len(keys_T)), seen_by_T)
        log_evidence_TE[rows, self.columns_N[entries]] += self.gains_N[entries]

    @property
    def _entry_keys(self) -> Ints:
        return np.repeat(self.pair_keys_K, np.diff(self.starts))


def with_segment(segments: Sequence[PairSegment], newcomer: PairSegment) -> tuple[PairSegment, ...]:
    """The segments and one more, merged with its neighbours while they are not much larger."""
    kept = list(segments)
    while kept and len(kept[-1].gains_N) <= 2 * len(newcomer.gains_N):
        newcomer = kept.pop().merged_with(newcomer)
    return (*kept, newcomer)
