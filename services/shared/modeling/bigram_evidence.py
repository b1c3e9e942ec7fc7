"""What an expert's text sounds like: smoothed counts of token pairs (measured: docs/EXPERIMENTS.md).

    p_e(x_t | x_{t-1}) = (c_e(x_{t-1}, x_t) + 20 p_e(x_t)) / (c_e(x_{t-1}) + 20)          (Dirichlet-smoothed bigram)
    p_e(x)             = (c_e(x) + 0.5) / (N_e + 0.5 V)                                    (add one half)

The previous token is its own context in small vocabularies and one of 64 hash buckets in large ones.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.shared.modeling.evidence_file import InvalidEvidence, read_arrays, write_arrays
from services.shared.modeling.pair_index import LAST_COLUMN, PairSegment, with_segment

PAIR_SMOOTHING: Final = 20.0
TOKEN_SMOOTHING: Final = 0.5
LARGEST_EXACT_VOCABULARY: Final = 8192
NUM_HASH_BUCKETS: Final = 64
DEFAULT_MAX_TOKENS: Final = 50_000
WINDOW_TOKENS: Final = 128
_KIND: Final = "bigram evidence"

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BigramEvidence:
    """Pair counts of one expert's text. `pair_keys_N` is sorted: context * vocab_size + next token."""

    vocab_size: int
    num_contexts: int
    pair_keys_N: Ints
    counts_N: Ints

    @property
    def num_tokens(self) -> int:
        """How many pairs were counted."""
        return int(self.counts_N.sum())

    @property
    def context_counts(self) -> Floats:
        """How often each context was seen, [num_contexts]."""
        contexts_N = self.pair_keys_N // self.vocab_size
        return np.bincount(contexts_N, self.counts_N, self.num_contexts).astype(np.float64)

    @property
    def token_probabilities(self) -> Floats:
        """p_e(x), [vocab_size], positive everywhere."""
        next_ids_N = self.pair_keys_N % self.vocab_size
        counts_V = np.bincount(next_ids_N, self.counts_N, self.vocab_size).astype(np.float64)
        total = float(counts_V.sum()) + TOKEN_SMOOTHING * self.vocab_size
        return (counts_V + TOKEN_SMOOTHING) / total

    def save(self, path: Path) -> None:
        """Write compressed sparse rows: offsets per context, next tokens and counts in the narrowest type."""
        contexts_N, next_ids_N = np.divmod(self.pair_keys_N, self.vocab_size)
        offsets = np.searchsorted(contexts_N, np.arange(self.num_contexts + 1))
        arrays = {"offsets": _narrow(offsets), "next_ids": _narrow(next_ids_N), "counts": _narrow(self.counts_N)}
        facts = {"kind": _KIND, "vocab_size": self.vocab_size, "num_contexts": self.num_contexts}
        write_arrays(path, arrays, facts)

    @classmethod
    def load(cls, path: Path) -> "BigramEvidence":
        """Read what `save` wrote. Raises InvalidEvidence when the arrays contradict each other."""
        arrays, facts = read_arrays(path, kind=_KIND)
        try:
            vocab_size, num_contexts = int(facts["vocab_size"]), int(facts["num_contexts"])
            offsets, next_ids_N, counts_N = (arrays[key].astype(np.int64) for key in ("offsets", "next_ids", "counts"))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidEvidence(f"{path.name} lacks {error}: build the evidence again.") from error
        if not _is_sound(vocab_size, num_contexts, offsets, next_ids_N, counts_N):
            raise InvalidEvidence(f"{path.name} contradicts itself: build the evidence again.")
        contexts_N = np.repeat(np.arange(num_contexts), np.diff(offsets))
        return cls(vocab_size, num_contexts, contexts_N * vocab_size + next_ids_N, counts_N)


class BigramEvidenceStack:
    """The evidence of all columns of a release, looked up together. Immutable."""

    def __init__(self, evidences: Sequence[BigramEvidence], corrections: Sequence[float] | None = None) -> None:
        """`corrections` are nats per token added to each column (`size_correction.py`); default: none.

        Raises InvalidEvidence unless all were counted over one vocabulary.
        """
        first = evidences[0]
        self.vocab_size = first.vocab_size
        self.num_contexts = first.num_contexts
        for evidence in evidences:
            self._check_vocabulary(evidence)
        corrections = [0.0] * len(evidences) if corrections is None else corrections
        self._log_tokens_VE = np.stack([_log_tokens(e) for e in evidences], axis=1)
        columns = [_log_contexts(e, nats) for e, nats in zip(evidences, corrections, strict=True)]
        self._log_contexts_XE = np.stack(columns, axis=1)
        numbers = [*range(len(evidences) - 1), LAST_COLUMN]
        self._segments: tuple[PairSegment, ...] = (
            PairSegment.of(
                np.concatenate([e.pair_keys_N for e in evidences]),
                np.repeat(numbers, [len(e.pair_keys_N) for e in evidences]),
                np.concatenate([_gains(e) for e in evidences]),
            ),
        )

    @property
    def num_columns(self) -> int:
        """E."""
        return int(self._log_tokens_VE.shape[1])

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays; segments that it shares with other stacks are counted too."""
        tables = self._log_tokens_VE.nbytes + self._log_contexts_XE.nbytes
        return tables + sum(segment.num_bytes for segment in self._segments)

    def with_newcomer(self, evidence: BigramEvidence, correction: float = 0.0) -> "BigramEvidenceStack":
        """The same with one more column before the last. Sorts nothing but the newcomer's own pairs, as a rule.

        Gives the same bits as a stack made of all.
        """
        self._check_vocabulary(evidence)
        extended = copy(self)
        extended._log_tokens_VE = _inserted(self._log_tokens_VE, _log_tokens(evidence))
        extended._log_contexts_XE = _inserted(self._log_contexts_XE, _log_contexts(evidence, correction))
        columns_N = np.full(len(evidence.pair_keys_N), self.num_columns - 1)
        newcomer = PairSegment.of(evidence.pair_keys_N, columns_N, _gains(evidence))
        extended._segments = with_segment(self._segments, newcomer)
        return extended

    def log_evidence(self, previous_T: Ints, next_T: Ints) -> Floats:
        """log p_e(next | previous), [T, E]; zeros where `previous` is negative: a first token says nothing."""
        log_evidence_TE = self._log_tokens_VE[next_T]
        contexts_T = contexts_of(previous_T, self.vocab_size, self.num_contexts)
        log_evidence_TE -= self._log_contexts_XE[contexts_T]
        for segment in self._segments:
            segment.add_gains(log_evidence_TE, contexts_T * self.vocab_size + next_T)
        log_evidence_TE[previous_T < 0] = 0.0
        return log_evidence_TE

    def _check_vocabulary(self, evidence: BigramEvidence) -> None:
        if (evidence.vocab_size, evidence.num_contexts) != (self.vocab_size, self.num_contexts):
            raise InvalidEvidence(
                "Evidence of one release must be counted with one tokenizer: build it with the base model's."
            )


def _log_tokens(evidence: BigramEvidence) -> Floats:
    """log(20 p(x)), [V]."""
    log_tokens_V: Floats = np.log(PAIR_SMOOTHING * evidence.token_probabilities)
    return log_tokens_V


def _log_contexts(evidence: BigramEvidence, correction: float) -> Floats:
    """log(c(x) + 20) less the correction, one per context."""
    log_contexts_X: Floats = np.log(evidence.context_counts + PAIR_SMOOTHING) - correction
    return log_contexts_X


def _gains(evidence: BigramEvidence) -> Floats:
    """What each pair is more likely than its second token alone, in nats."""
    probabilities_N = evidence.token_probabilities[evidence.pair_keys_N % evidence.vocab_size]
    gains_N: Floats = np.log1p(evidence.counts_N / (PAIR_SMOOTHING * probabilities_N))
    return gains_N


def _inserted(table_NE: Floats, column_N: Floats) -> Floats:
    """One more column before the last."""
    return np.concatenate([table_NE[:, :-1], column_N[:, None], table_NE[:, -1:]], axis=1)


def contexts_of(token_ids: Ints, vocab_size: int, num_contexts: int) -> Ints:
    """The context a previous token stands for: itself, or its hash bucket (Knuth's multiplicative hash)."""
    if num_contexts == vocab_size:
        return np.maximum(token_ids, 0)
    hashed = (np.maximum(token_ids, 0).astype(np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    return ((hashed * np.uint64(num_contexts)) >> np.uint64(32)).astype(np.int64)


def build_bigram_evidence(
    token_streams: Sequence[Sequence[int]],
    vocab_size: int,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
    num_contexts: int | None = None,
) -> BigramEvidence:
    """Count pairs in a random sample of windows, `max_tokens` pairs at most; streams are documents of token ids.

    The same budget for every expert keeps their likelihoods comparable, and random windows represent a text
    better than its beginning. `num_contexts` is the number of hash buckets of previous tokens; by default as many as
    the vocabulary wants. Raises InvalidEvidence when there is no pair to count.
    """
    if num_contexts is None:
        num_contexts = vocab_size if vocab_size <= LARGEST_EXACT_VOCABULARY else NUM_HASH_BUCKETS
    windows = sample_windows(token_streams, max_tokens, seed)
    if not windows:
        raise InvalidEvidence("The exemplars hold no text to learn from: supply some thousand tokens.")
    previous_ids = np.concatenate([window[:-1] for window in windows])
    next_ids = np.concatenate([window[1:] for window in windows])
    if min(previous_ids.min(), next_ids.min()) < 0 or max(previous_ids.max(), next_ids.max()) >= vocab_size:
        raise InvalidEvidence(f"Token ids must lie in 0..{vocab_size - 1}: use the base model's tokenizer.")
    keys = contexts_of(previous_ids, vocab_size, num_contexts) * vocab_size + next_ids
    pair_keys_N, counts_N = np.unique(keys, return_counts=True)
    return BigramEvidence(vocab_size, num_contexts, pair_keys_N, counts_N.astype(np.int64))


def sample_windows(token_streams: Sequence[Sequence[int]], max_tokens: int, seed: int) -> list[Ints]:
    # Neighbouring windows share one token, so that no pair is lost at their border.
    streams = [np.asarray(stream, dtype=np.int64) for stream in token_streams]
    windows = [
        stream[start : start + WINDOW_TOKENS + 1]
        for stream in streams
        for start in range(0, len(stream) - 1, WINDOW_TOKENS)
    ]
    if sum(len(window) - 1 for window in windows) <= max_tokens:
        return windows
    chosen: list[Ints] = []
    budget = max_tokens
    for index in np.random.default_rng(seed).permutation(len(windows)):
        if budget <= 0:
            break
        chosen.append(windows[index][: budget + 1])
        budget -= len(chosen[-1]) - 1
    return chosen


def _narrow(array: Ints) -> npt.NDArray[Any]:
    fits_16_bits = not len(array) or int(array.max()) < 2**16
    return array.astype(np.uint16 if fits_16_bits else np.uint32)


def _is_sound(vocab_size: int, num_contexts: int, offsets: Ints, next_ids_N: Ints, counts_N: Ints) -> bool:
    return (
        vocab_size > 0
        and num_contexts > 0
        and offsets.shape == (num_contexts + 1,)
        and offsets[0] == 0
        and offsets[-1] == len(next_ids_N) == len(counts_N)
        and bool((np.diff(offsets) >= 0).all())
        and bool((next_ids_N < vocab_size).all())
        and bool((counts_N > 0).all())
    )
