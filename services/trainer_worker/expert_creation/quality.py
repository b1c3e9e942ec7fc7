"""Examples that would teach nothing, or nonsense: repetitive ones, and such as the base model finds strange or trivial
beside the others of their file."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.shared.training_text import Example

_RUN: Final = 8
_LEAST_DISTINCT: Final = 0.25
_JUDGED_CHARACTERS: Final = 64
_BLANKS: Final = re.compile(r"\s+")

_DEVIATIONS: Final = 6.0
"""Robust standard deviations from the median loss. Examples of one domain lie within three or four; a text of another
language, or noise, beyond ten."""

_LEAST_DEVIATION: Final = 0.1
_TRIVIAL_LOSS: Final = 0.02
_LEAST_TOKENS: Final = 4


@dataclass(frozen=True)
class Judged:
    """Which examples are kept, and how many were dropped, by reason."""

    kept: tuple[Example, ...]
    dropped: Counter[str]


def without_repetitive(examples: Sequence[Example]) -> Judged:
    """Drop those that say the same over and over."""
    return _judged(examples, ["repetitive" if _is_repetitive(example.text) else None for example in examples])


def without_outliers(
    examples: Sequence[Example], loss_N: npt.NDArray[np.float64], tokens_N: npt.NDArray[np.int64]
) -> Judged:
    """Drop what the base model knows by heart, what is far from the others' loss, in nats per token, and what is too
    short to tell."""
    median = np.median(loss_N) if len(loss_N) else 0.0
    deviation = max(1.4826 * float(np.median(np.abs(loss_N - median))) if len(loss_N) else 0.0, _LEAST_DEVIATION)
    reasons: list[str | None] = []
    for loss, num_tokens in zip(loss_N, tokens_N, strict=True):
        if num_tokens < _LEAST_TOKENS:
            reasons.append("too_short")
        elif loss < max(_TRIVIAL_LOSS, median - _DEVIATIONS * deviation):
            reasons.append("too_easy")
        else:
            reasons.append("outlier" if loss > median + _DEVIATIONS * deviation else None)
    return _judged(examples, reasons)


def _is_repetitive(text: str) -> bool:
    """A small share of distinct runs of characters, where there are enough of them to tell."""
    flat = _BLANKS.sub(" ", text)
    num_runs = len(flat) - _RUN + 1
    if len(flat) < _JUDGED_CHARACTERS:
        return False
    return len({flat[start : start + _RUN] for start in range(num_runs)}) < _LEAST_DISTINCT * num_runs


def _judged(examples: Sequence[Example], reasons: Sequence[str | None]) -> Judged:
    kept = tuple(example for example, reason in zip(examples, reasons, strict=True) if reason is None)
    return Judged(kept, Counter(reason for reason in reasons if reason is not None))
