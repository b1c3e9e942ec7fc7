"""How often caches of experts would hit, over all layers in the order that they run."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY, LayerChoices
from services.traces.statistics.cache_simulation import simulate
from services.traces.statistics.estimate import Null, NullMethod, number, series
from services.traces.statistics.resamples import Resamples, share
from services.traces.statistics.results import AnalysisOptions, Cache, CacheCurve, CachePolicy

_NUM_STEPS: Final = 8
_AGING_ROUNDS: Final = 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _LayerTokens:
    """One layer of the sequences that are simulated."""

    num_experts: int
    lengths: NDArray[np.int64]
    """[n] tokens of each."""
    experts: NDArray[np.int32]
    """[T, K]"""


class CacheTokens:
    """Of some sequences, all layers: few enough to be kept while layers come one by one. Sequences are taken by chance,
    so that no domain is left out, until there are `max_tokens` tokens; of the last one its beginning."""

    def __init__(self, num_domains: int, options: AnalysisOptions) -> None:
        self._num_domains = num_domains
        self._options = options
        self._chosen: NDArray[np.int64] | None = None
        self._domains = np.zeros(0, dtype=np.int64)
        self._limits = np.zeros(0, dtype=np.int64)
        self._num_tokens = 0
        self._layers: list[_LayerTokens] = []

    def add(self, choices: LayerChoices) -> None:
        """The next layer of a part of the trace; its sequences are the trace's."""
        lengths_N = np.diff(choices.starts)
        if self._chosen is None:
            self._choose(lengths_N)
            self._domains = choices.domains[self._chosen]
        assert self._chosen is not None
        taken = np.minimum(lengths_N[self._chosen], self._limits)
        sequences = choices.of_sequences(self._chosen)
        begins = np.repeat(sequences.starts[:-1], np.diff(sequences.starts))
        kept_T = np.arange(sequences.num_tokens) - begins < self._limits[sequences.sequences]
        self._layers.append(_LayerTokens(choices.num_experts, taken, sequences.experts[kept_T]))
        self._num_tokens = max(self._num_tokens, choices.num_tokens)

    def figure(self) -> Cache | None:
        """None where there is nothing to simulate."""
        lengths_LN = np.array([layer.lengths for layer in self._layers])
        alike_N = np.asarray((lengths_LN == self._limits).all(axis=0))
        if not self._layers or not alike_N.any():
            return None
        objects_TA = np.column_stack([
            np.where(rows_TK == NOBODY, NOBODY, rows_TK + offset)
            for rows_TK, offset in zip(self._rows(alike_N), self._offsets()[:-1], strict=True)
        ])  # fmt: skip
        sequences_T = np.repeat(np.arange(int(alike_N.sum())), self._limits[alike_N])
        shuffled_T = np.argsort(sequences_T + np.random.default_rng((self._options.seed, 6)).random(len(sequences_T)))
        return _cache(
            _Accesses.of(objects_TA, sequences_T),
            _Accesses.of(objects_TA[shuffled_T], sequences_T),
            domains_N=self._domains[alike_N],
            num_domains=self._num_domains,
            num_objects=int(self._offsets()[-1]),
            num_tokens=len(sequences_T),
            left_out=self._left_out(alike_N, len(sequences_T)),
            options=self._options,
        )

    def _rows(self, alike_N: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        return [layer.experts[np.repeat(alike_N, layer.lengths)].astype(np.int64) for layer in self._layers]

    def _offsets(self) -> NDArray[np.int64]:
        return np.concatenate(([0], np.cumsum([layer.num_experts for layer in self._layers], dtype=np.int64)))

    def _left_out(self, alike_N: NDArray[np.bool_], num_tokens: int) -> str | None:
        reasons = []
        if not alike_N.all():
            reasons.append(f"{np.sum(~alike_N)} sequences have other tokens in one layer than in another")
        if num_tokens < self._num_tokens:
            reasons.append(f"of {self._num_tokens} tokens {num_tokens} are simulated, of sequences taken by chance")
        return "; ".join(reasons) or None

    def _choose(self, lengths_N: NDArray[np.int64]) -> None:
        order = np.random.default_rng((self._options.seed, 5)).permutation(np.flatnonzero(lengths_N))
        reached = np.cumsum(lengths_N[order])
        count = int(np.searchsorted(reached, self._options.cache_tokens)) + 1
        self._chosen = order[:count]
        before = reached[:count] - lengths_N[self._chosen]
        self._limits = np.minimum(lengths_N[self._chosen], self._options.cache_tokens - before)


@dataclass(frozen=True)
class _Accesses:
    """A objects in the order that they are used in, and the sequence of each."""

    objects_A: NDArray[np.int64]
    sequences_A: NDArray[np.int64]

    @classmethod
    def of(cls, objects_TA: NDArray[np.int64], sequences_T: NDArray[np.int64]) -> "_Accesses":
        """Token by token."""
        used = objects_TA != NOBODY
        return cls(objects_TA[used], np.repeat(sequences_T, used.sum(axis=1)))


def _cache(  # noqa: PLR0913
    accesses: _Accesses,
    shuffled: _Accesses,
    *,
    domains_N: NDArray[np.int64],
    num_domains: int,
    num_objects: int,
    num_tokens: int,
    left_out: str | None,
    options: AnalysisOptions,
) -> Cache:
    slots = options.cache_slots or _steps(num_objects)
    num_used = len(np.unique(accesses.objects_A))
    resamples = Resamples(
        domains_N, num_domains, num_resamples=options.num_resamples, max_groups=len(domains_N), seed=options.seed
    )
    whole_N1 = np.bincount(accesses.sequences_A, minlength=len(domains_N)).astype(np.float64)[:, None]

    def curve(policy: CachePolicy) -> CacheCurve:
        hits_NS, shuffled_NS = (_hits(policy, each, slots, len(domains_N), options) for each in (accesses, shuffled))
        return CacheCurve(
            policy=policy,
            hit_rate=series(
                share(hits_NS.sum(axis=0), whole_N1.sum()),
                resamples.bounds(share(resamples.totals(hits_NS), resamples.totals(whole_N1))),
                Null(NullMethod.SHUFFLED_TOKENS, share(shuffled_NS.sum(axis=0), whole_N1.sum())),
            ),
        )

    return Cache(
        num_sequences=len(domains_N),
        num_tokens=num_tokens,
        slots=slots,
        curves=tuple(curve(policy) for policy in CachePolicy),
        num_accesses=len(accesses.objects_A),
        num_objects=num_objects,
        num_used=num_used,
        compulsory_misses=number(share(num_used, len(accesses.objects_A))),
        aging_accesses=options.cache_aging_accesses,
        left_out=left_out,
    )


def _hits(
    policy: CachePolicy, accesses: _Accesses, slots: tuple[int, ...], num_sequences: int, options: AnalysisOptions
) -> Floats:
    """[N, S] by sequence and number of slots."""
    columns = []
    for size in slots:
        hits_A = simulate(
            policy, accesses.objects_A, size, aging_accesses=options.cache_aging_accesses or _AGING_ROUNDS * size
        )
        columns.append(np.bincount(accesses.sequences_A[hits_A], minlength=num_sequences))
    return np.column_stack(columns).astype(np.float64)


def _steps(num_objects: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(num_objects * step / _NUM_STEPS)) for step in range(1, _NUM_STEPS + 1)}))
