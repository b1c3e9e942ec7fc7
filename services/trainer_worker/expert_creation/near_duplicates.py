"""Texts that say the same in almost the same characters."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import HashingVectorizer

SIMILARITY: Final = 0.9
"""Of the sets of two texts' runs of five characters (Jaccard): a word or two in a long text, a comma in a short one."""

_RUN: Final = 5
_NUM_BUCKETS: Final = 2**20
_ROWS: Final = 256

Mask = npt.NDArray[np.bool_]


def near_duplicates(texts: Sequence[str]) -> Mask:
    """Which texts are like an earlier one that is not marked itself, [N]."""
    marked_N = np.zeros(len(texts), dtype=np.bool_)
    runs_NF = _runs(texts)
    for start in range(0, len(texts), _ROWS):
        alike_RN = _alike(runs_NF[start : start + _ROWS], runs_NF[: start + _ROWS])
        for row, alike_N in enumerate(alike_RN):
            place = start + row
            marked_N[place] = bool((alike_N[:place] & ~marked_N[:place]).any())
    return marked_N


def like_any(texts: Sequence[str], others: Sequence[str]) -> Mask:
    """Which texts are like one of the others, [N]."""
    marked_N = np.zeros(len(texts), dtype=np.bool_)
    runs_NF = _runs(texts)
    for start in range(0, len(others), _ROWS):
        marked_N |= _alike(_runs(others[start : start + _ROWS]), runs_NF).any(axis=0)
    return marked_N


def _runs(texts: Sequence[str]) -> Any:
    """Which runs of characters are in each text, sparse [N, F]."""
    vectorizer = HashingVectorizer(
        analyzer="char", ngram_range=(_RUN, _RUN), n_features=_NUM_BUCKETS, binary=True, norm=None,
        alternate_sign=False, lowercase=False,
    )  # fmt: skip
    return vectorizer.transform(texts or [""])


def _alike(first_MF: Any, second_NF: Any) -> Mask:
    """[M, N]."""
    shared_MN = (first_MF @ second_NF.T).toarray()
    all_MN = np.asarray(first_MF.sum(axis=1)) + np.asarray(second_NF.sum(axis=1)).T - shared_MN
    alike_MN: Mask = shared_MN >= SIMILARITY * np.maximum(all_MN, 1.0)
    return alike_MN
