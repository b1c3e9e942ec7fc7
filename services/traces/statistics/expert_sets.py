"""Tokens' choices as sets of bits, so that two tokens are compared by a few words, whatever K."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY

_BITS: Final = 64

Words = NDArray[np.uint64]


def expert_sets(experts_TK: NDArray[np.int32], num_experts: int) -> Words:
    """[T, W] with bit e % 64 of word e // 64 set for each expert e of the token."""
    sets_TW = np.zeros((len(experts_TK), -(-num_experts // _BITS)), dtype=np.uint64)
    tokens_T = np.arange(len(experts_TK))
    for rank in range(experts_TK.shape[1]):
        experts_T = experts_TK[:, rank]
        chosen = experts_T != NOBODY
        numbers = experts_T[chosen].astype(np.uint64)
        # A token is in it once for this rank, so nothing is written twice.
        sets_TW[tokens_T[chosen], numbers // _BITS] |= np.uint64(1) << (numbers % _BITS)
    return sets_TW


def num_common(first_TW: Words, second_TW: Words) -> NDArray[np.int64]:
    """[T] how many experts both have."""
    return np.asarray(np.bitwise_count(first_TW & second_TW).sum(axis=1), dtype=np.int64)
