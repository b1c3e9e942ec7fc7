"""What is counted of a layer while it is read, to recognise recordings that are not of routing."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.traces.choices import NOBODY

LONG_RUN: Final = 64
"""Tokens in a row with the same experts, where there are many sets to choose from: no text does that to a router."""

MANY_SETS: Final = 1000
"""With fewer, the same set may come often by rights: two experts of four are one of six."""

_FEW_TOKENS: Final = 32
"""Fewer say nothing of how often a set comes."""

_IN_LONG_RUNS: Final = 0.1
_MOSTLY: Final = 0.5
_ALWAYS: Final = 0.99
"""One set of 35,960 has 23 % of the tokens in a sound recording of gpt-oss-20b (layer 14), though never more than four
in a row: it is runs that tell, and only then how often a set comes."""

_KEPT_SETS: Final = 4096
_HASHES: Final = np.random.default_rng(0).integers(1, 2**63, size=2**16, dtype=np.uint64)
"""[expert] A set's hash is their sum: the order does not matter."""


def set_hashes(experts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[T] equal for tokens that have the same experts, in whatever order."""
    hashes: NDArray[np.uint64] = np.where(experts == NOBODY, np.uint64(0), _HASHES[experts]).sum(axis=1)
    return hashes


def runs(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The length of each run of equal ones."""
    starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1])))
    return np.diff(np.append(starts, len(hashes)))


def has_many_sets(num_experts: int, top_k: int) -> bool:
    """Whether a set that comes often cannot do so by chance."""
    return top_k >= 2 and math.comb(num_experts, min(top_k, num_experts)) >= MANY_SETS


@dataclass
class LayerTally:
    """One layer's. Rare sets are forgotten when there are too many; the commonest never is, for it is never rare."""

    num_tokens: int = 0
    num_uniform: int = 0
    num_weighted: int = 0
    top_k: int = 0
    highest: int = -1
    longest_run: int = 0
    num_in_long_runs: int = 0
    _counts: dict[int, int] = field(default_factory=dict)
    _examples: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, experts: NDArray[np.int64], weights: NDArray[np.float32] | None) -> None:
        """Tokens [T, K] of one sequence, in order; at least one."""
        chosen = experts != NOBODY
        self.num_tokens += len(experts)
        self.top_k = max(self.top_k, int(chosen.sum(axis=1).max()))
        self.highest = max(self.highest, int(experts.max()))
        hashes = set_hashes(experts)
        lengths = runs(hashes)
        self.longest_run = max(self.longest_run, int(lengths.max()))
        self.num_in_long_runs += int(lengths[lengths >= LONG_RUN].sum())
        self._count(hashes, experts)
        if weights is not None:
            self._look_at_weights(chosen, weights)

    def commonest(self) -> tuple[tuple[int, ...], float]:
        """The set that most tokens have, and their share."""
        found = max(self._counts, key=lambda each: self._counts[each])
        experts = tuple(sorted(expert for expert in self._examples[found].tolist() if expert != NOBODY))
        return experts, self._counts[found] / self.num_tokens

    def is_degenerate(self, num_experts: int) -> bool:
        """Whether one set comes so often that figures would be about it, and not about routing."""
        if self.num_tokens < _FEW_TOKENS:
            return False
        share = self.commonest()[1]
        in_long_runs = self.num_in_long_runs / self.num_tokens
        is_suspect = share >= _MOSTLY or in_long_runs >= _IN_LONG_RUNS
        return share >= _ALWAYS or (is_suspect and has_many_sets(num_experts, self.top_k))

    def _count(self, hashes: NDArray[np.uint64], experts: NDArray[np.int64]) -> None:
        found, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        for each, row, count in zip(found.tolist(), first.tolist(), counts.tolist(), strict=True):
            if each not in self._examples:
                self._examples[each] = experts[row].copy()
            self._counts[each] = self._counts.get(each, 0) + count
        if len(self._counts) > 2 * _KEPT_SETS:
            kept = sorted(self._counts, key=lambda each: -self._counts[each])[:_KEPT_SETS]
            self._counts = {each: self._counts[each] for each in kept}
            self._examples = {each: self._examples[each] for each in kept}

    def _look_at_weights(self, chosen: NDArray[Any], weights: NDArray[np.float32]) -> None:
        several = chosen.sum(axis=1) >= 2
        lowest = np.where(chosen, weights, np.inf).min(axis=1)
        self.num_weighted += int(several.sum())
        self.num_uniform += int((several & (weights.max(axis=1) - lowest < 1e-6)).sum())
