"""How much a small table of token pairs under-reports its own text, so that newcomers with little text are not starved.

A table of few tokens gives its own domain's text a lower likelihood than a large one would, for no reason of the text.
The shortfall is measured on the base row, thinned to smaller and smaller sizes, by leave-one-out likelihood; it is
stored with the router and added to the log-evidence of every smaller table. Measured: docs/EXPERIMENTS.md.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from services.shared.modeling.bigram_evidence import PAIR_SMOOTHING, TOKEN_SMOOTHING, BigramEvidence

SizeCurve = tuple[tuple[int, float], ...]
"""(tokens, nats per token that a table of so many falls short), from the full size downwards."""

LARGEST_CORRECTION: Final = 0.7
"""Nats per token. More would let a table of a few hundred tokens take other experts' text."""

_SMALLEST_TABLE: Final = 250


def leave_one_out(evidence: BigramEvidence) -> float:
    """Mean log-probability of the table's own text, every pair predicted from all the others; nats per token."""
    contexts_N, next_ids_N = np.divmod(evidence.pair_keys_N, evidence.vocab_size)
    counts_N = evidence.counts_N.astype(np.float64)
    token_counts_V = np.bincount(next_ids_N, counts_N, evidence.vocab_size)
    others = counts_N.sum() - 1.0 + TOKEN_SMOOTHING * evidence.vocab_size
    token_probabilities_N = (token_counts_V[next_ids_N] - 1.0 + TOKEN_SMOOTHING) / others
    numerators_N = counts_N - 1.0 + PAIR_SMOOTHING * token_probabilities_N
    denominators_N = evidence.context_counts[contexts_N] - 1.0 + PAIR_SMOOTHING
    return float((counts_N * np.log(numerators_N / denominators_N)).sum() / counts_N.sum())


def size_curve(evidence: BigramEvidence, *, seed: int = 0) -> SizeCurve:
    """The shortfall of this table thinned at random to a half, a quarter and so on, down to 250 tokens."""
    generator = np.random.default_rng(seed)
    full = leave_one_out(evidence)
    curve = [(evidence.num_tokens, 0.0)]
    num_tokens = evidence.num_tokens // 2
    while num_tokens >= _SMALLEST_TABLE:
        kept_N = generator.multivariate_hypergeometric(evidence.counts_N, num_tokens, method="marginals")
        thinned = BigramEvidence(
            evidence.vocab_size, evidence.num_contexts, evidence.pair_keys_N[kept_N > 0], kept_N[kept_N > 0]
        )
        curve.append((num_tokens, round(max(full - leave_one_out(thinned), curve[-1][1]), 4)))
        num_tokens //= 2
    return tuple(curve)


def correction(curve: Sequence[tuple[int, float]], num_tokens: int) -> float:
    """Nats per token to add to the log-evidence of a table of `num_tokens`; 0 for one as large as the curve's own."""
    if not curve:
        return 0.0
    sizes, shortfalls = zip(*sorted(curve), strict=True)
    between = np.interp(np.log(max(num_tokens, 1)), np.log(sizes), shortfalls)
    return float(min(between, LARGEST_CORRECTION))
