"""The choices of one layer's gate, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

NOBODY: Final = -1
"""In `LayerChoices.experts`, where a token has fewer experts than another."""


class Phase(IntEnum):
    """What a token was when its experts were chosen; the codes of the table's column `phase`."""

    PROMPT = 0
    GENERATED = 1
    PADDING = 2


@dataclass(frozen=True)
class LayerChoices:
    """One layer of a trace: T tokens, sequences one after another, each token's K choices by falling weight.

    Experts of different layers have nothing to do with each other, whatever their numbers, so everything that is said
    of experts is said of one layer's. Tokens of one sequence depend on each other; sequences do not.
    """

    layer: int
    num_experts: int
    """E: those that could have been chosen."""
    experts: NDArray[np.int32]
    """[T, K], `NOBODY` where a token has fewer."""
    weights: NDArray[np.float32] | None
    """[T, K], 0 where nobody is; None if the source does not tell them."""
    token_ids: NDArray[np.int64] | None
    """[T] the tokens that were read when the choice was made; None if the source does not tell them."""
    phases: NDArray[np.uint8]
    """[T] of `Phase`."""
    starts: NDArray[np.int64]
    """[N+1] sequence n is the tokens starts[n] to starts[n+1]; some may be empty."""
    domains: NDArray[np.int64]
    """[N] each sequence's domain, an index into the trace's."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.experts)

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.domains)

    @property
    def sequences(self) -> NDArray[np.int64]:
        """[T] the sequence of each token."""
        return np.repeat(np.arange(self.num_sequences), np.diff(self.starts))

    def of(self, *phases: Phase) -> "LayerChoices":
        """The tokens of these phases alone. What was between them is gone: neighbours in the result that were not
        neighbours are so only where phases alternate, which prompt, generation and padding do not."""
        return self._where(np.isin(self.phases, phases))

    def of_domains(self, domains: Sequence[int]) -> "LayerChoices":
        """The sequences of these domains; the others stay, without tokens."""
        return self._where(np.isin(self.domains, domains)[self.sequences])

    def of_sequences(self, numbers: NDArray[np.int64]) -> "LayerChoices":
        """These sequences alone, in this order."""
        lengths = np.diff(self.starts)[numbers]
        starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        tokens = np.repeat(self.starts[numbers] - starts[:-1], lengths) + np.arange(starts[-1])
        return self.of_tokens(tokens, starts, numbers)

    def of_tokens(
        self, tokens: NDArray[np.int64], starts: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> "LayerChoices":
        """These tokens alone, of these sequences, that each has from `starts` on."""
        return replace(
            self,
            experts=self.experts[tokens],
            weights=self.weights[tokens] if self.weights is not None else None,
            token_ids=self.token_ids[tokens] if self.token_ids is not None else None,
            phases=self.phases[tokens],
            starts=starts,
            domains=self.domains[numbers],
        )

    def _where(self, kept: NDArray[np.bool_]) -> "LayerChoices":
        counts = np.add.reduceat(np.append(kept, 0), self.starts[:-1])
        counts[np.diff(self.starts) == 0] = 0
        starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        return self.of_tokens(np.flatnonzero(kept), starts, np.arange(self.num_sequences))
