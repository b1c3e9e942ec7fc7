"""Hidden states as they are kept in rows: a vector [D] of 16-bit floats, little-endian."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_KEPT_AS: Final = np.dtype("<f2")


def pack_states(states: ArrayLike) -> bytes:
    """The bytes of a vector [D]. What lies beyond the range of 16 bits is kept as the largest that they can say."""
    largest = float(np.finfo(_KEPT_AS).max)
    return np.clip(np.asarray(states, dtype=np.float32), -largest, largest).astype(_KEPT_AS).tobytes()


def unpack_states(packed: bytes) -> NDArray[np.float32]:
    """The vector [D] of what `pack_states` made."""
    return np.frombuffer(packed, dtype=_KEPT_AS).astype(np.float32)
