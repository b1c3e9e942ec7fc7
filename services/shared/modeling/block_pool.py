"""Blocks of memory that come back by themselves when the last tensor over them is gone.

Fresh pages cost more than the reading that fills them (3.6 ms for 11 MB here, against 1.3 ms), so that a loader
which takes one adapter in and lets another go should write where the other lay.
"""

import weakref
from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MOST_KEPT: Final = 4
_MOST_KEPT_BYTES: Final = 64 * 1024**2
_MOST_WASTED: Final = 1.25
"""A kept block may be a quarter larger than what is asked of it."""

Bytes = npt.NDArray[np.uint8]


class BlockPool:
    """Any thread. A few blocks of 64 MiB at most are kept for the next who asks."""

    def __init__(self) -> None:
        self._kept: deque[Bytes] = deque(maxlen=_MOST_KEPT)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody uses at present."""
        return len(self._kept)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """`count` numbers of any content, in memory that is this tensor's and its views' alone."""
        num_bytes = count * dtype.itemsize
        memory = self._fitting(num_bytes)
        # A view of its own, which the tensor's storage holds on to: its end is the end of all tensors over it.
        lent = memory[:num_bytes]
        if len(memory) <= _MOST_KEPT_BYTES:
            weakref.finalize(lent, self._kept.append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype)

    def _fitting(self, num_bytes: int) -> Bytes:
        for _ in range(len(self._kept)):
            try:
                memory = self._kept.popleft()
            except IndexError:  # another thread was quicker
                break
            if num_bytes <= len(memory) <= _MOST_WASTED * num_bytes:
                return memory
            self._kept.append(memory)
        return np.empty(num_bytes, dtype=np.uint8)
