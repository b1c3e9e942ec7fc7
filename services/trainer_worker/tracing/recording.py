"""What is recorded while prompts are answered: for every layer, the experts of each token of a batch.

Shape letters: B sequences, T tokens (columns of the batch, padding included), K experts of a token.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model reads it."""

    id: str
    domain: str
    text: str
    token_ids: Sequence[int]
    max_tokens: int


class Choices(NamedTuple):
    """One layer's, each token's by falling weight: [B, T, K] of a batch, [T, K] of a sequence."""

    experts: NDArray[np.int32]
    weights: NDArray[np.float32]


class Heard(Protocol):
    """What a recorder has heard of a batch, once it is answered."""

    def layers(self) -> Mapping[int, Choices]:
        """By layer, a column for every column that the model has read."""


class Recorder(Protocol):
    """Hears what a model's gates choose."""

    @property
    def num_experts(self) -> Mapping[int, int]:
        """E by layer."""

    def recording(self, prompts: Sequence[TokenizedPrompt]) -> AbstractContextManager[Heard]:
        """While the model answers these prompts inside, one row of the batch each."""


def by_falling_weight(experts_BTK: NDArray[Any], weights_BTK: NDArray[Any]) -> Choices:
    """Ranked; who has no weight was not used and is nobody."""
    order_BTK = np.argsort(-weights_BTK, axis=-1, kind="stable")
    experts_BTK = np.take_along_axis(experts_BTK, order_BTK, axis=-1).astype(np.int32)
    weights_BTK = np.take_along_axis(weights_BTK, order_BTK, axis=-1).astype(np.float32)
    experts_BTK[weights_BTK == 0.0] = NOBODY
    num_used = max(1, int((experts_BTK != NOBODY).sum(axis=-1).max(initial=1)))
    return Choices(experts_BTK[..., :num_used], weights_BTK[..., :num_used])
