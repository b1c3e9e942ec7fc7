"""Words that tell groups of prompts from each other: class-based TF-IDF (Grootendorst 2022, BERTopic)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

NUM_KEYWORDS: Final = 10
_MOST_WORDS: Final = 20_000
_LEAST_PROMPTS: Final = 2
"""A word of one prompt alone says nothing of the others, and may be nobody else's business."""


def class_keywords(groups: Sequence[Sequence[str]], others: Sequence[str]) -> list[list[str]]:
    """The words of each group, best first; `others` are one more class, whose words count as common."""
    texts = [text for group in (*groups, others) for text in group]
    sizes = [len(group) for group in (*groups, others)]
    vectorizer = CountVectorizer(token_pattern=r"(?u)\b[^\W\d_]\w+\b", stop_words="english", max_features=_MOST_WORDS)
    try:
        counts_NV = vectorizer.fit_transform(texts)
    except ValueError:  # no words at all
        return [[] for _ in groups]
    words = vectorizer.get_feature_names_out()
    edges = np.cumsum([0, *sizes])
    parts = [counts_NV[start:end] for start, end in pairwise(edges)]
    counts_CV = np.stack([np.asarray(part.sum(axis=0)).ravel() for part in parts]).astype(np.float64)
    words_per_class = counts_CV.sum() / len(parts)
    shares_CV = counts_CV / np.maximum(counts_CV.sum(axis=1, keepdims=True), 1.0)
    scores_CV = shares_CV * np.log1p(words_per_class / counts_CV.sum(axis=0))
    found = []
    for part, scores_V in zip(parts[:-1], scores_CV[:-1], strict=True):
        is_shared_V = np.asarray((part > 0).sum(axis=0)).ravel() >= _LEAST_PROMPTS
        # Equal scores by the alphabet, in which the words are.
        best = np.argsort(-np.where(is_shared_V, scores_V, 0.0), kind="stable")[:NUM_KEYWORDS]
        found.append([str(words[index]) for index in best if is_shared_V[index]])
    return found
