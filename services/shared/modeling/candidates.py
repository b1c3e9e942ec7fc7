"""Which of many experts may speak in a request: pure, from what the router makes of its prompt."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LEAST_PEAK: Final = 0.01
_FEWEST_CANDIDATES: Final = 4


def choose_candidates(columns: Sequence[str], scores_TC: Floats, max_candidates: int) -> tuple[str, ...]:
    """The experts that score highest at any prompt token, best first, `max_candidates` at most.

    Where not all can be candidates, those that the prompt never hears of are none either, but for a few that the answer
    may turn to: a plan holds a slot for each of its candidates, and other requests wait for that slot.
    """
    experts = columns[:-1]
    peaks_E = scores_TC[:, :-1].max(axis=0)
    ranked = np.argsort(-peaks_E, kind="stable")
    if len(experts) > max_candidates:
        num_heard = int((peaks_E >= _LEAST_PEAK).sum())
        ranked = ranked[: min(max_candidates, max(num_heard, _FEWEST_CANDIDATES))]
    return tuple(experts[index] for index in ranked)
