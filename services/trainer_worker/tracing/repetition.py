"""Answers that fell into a loop: what experts do there is about the loop, and no longer about the domain."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.traces.description import Finding, Severity

_RUN: Final = 4
_FEWEST_TOKENS: Final = 16
_MOST_REPEATED: Final = 0.5
_MOST_NAMED: Final = 8


def is_repetitive(token_ids_T: NDArray[np.int64]) -> bool:
    """Whether most runs of four tokens were there before; never of texts too short to tell."""
    if len(token_ids_T) < _FEWEST_TOKENS:
        return False
    runs = np.lib.stride_tricks.sliding_window_view(token_ids_T, _RUN)
    num_distinct = len(np.unique(runs, axis=0))
    return 1.0 - num_distinct / len(runs) > _MOST_REPEATED


def repetition_finding(names: Sequence[str], answers: Sequence[NDArray[np.int64]]) -> Finding | None:
    """Which of the answers, by their prompts' names, fell into a loop; None if none did."""
    found = [name for name, answer in zip(names, answers, strict=True) if is_repetitive(answer)]
    if not found:
        return None
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return Finding(
        code="repetitive_generation",
        severity=Severity.WARNING,
        message=f"{len(found)} of {len(names)} answers repeat themselves: {', '.join(found[:_MOST_NAMED])}{more}. "
        "Stickiness, overlap and cache hits of their generated tokens say more of the loop than of the prompts: look "
        "at prompt tokens, or trace again at a higher temperature or with fewer tokens.",
        count=len(found),
    )
