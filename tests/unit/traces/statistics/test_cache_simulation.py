"""Simulated caches do what their obvious twins do, access by access."""

import numpy as np
import pytest

from services.traces.statistics.cache_simulation import simulate, stack_distances
from services.traces.statistics.results import CachePolicy


def hits_of_twin(policy: CachePolicy, accesses: list[int], slots: int, aging_accesses: int) -> list[bool]:
    """Looks through the whole cache at every step."""
    held: dict[int, list[int]] = {}  # uses since it came in, time of the last one
    hits = []
    for time, wanted in enumerate(accesses):
        if policy is CachePolicy.LFU_AGING and time % aging_accesses == 0:
            for entry in held.values():
                entry[0] //= 2
        hits.append(wanted in held)
        if wanted not in held and len(held) == slots:
            del held[leaving(policy, held, accesses[time + 1 :])]
        uses = held[wanted][0] if wanted in held else 0
        held[wanted] = [uses + 1, time]
    return hits


def leaving(policy: CachePolicy, held: dict[int, list[int]], future: list[int]) -> int:
    if policy is CachePolicy.LRU:
        return min(held, key=lambda each: held[each][1])
    if policy is CachePolicy.BELADY:
        return max(held, key=lambda each: future.index(each) if each in future else len(future))
    return min(held, key=lambda each: tuple(held[each]))


@pytest.mark.parametrize("policy", list(CachePolicy))
@pytest.mark.parametrize("seed", [0, 1])
def test_hits_are_those_of_a_naive_cache(policy: CachePolicy, seed: int) -> None:
    accesses = np.random.default_rng(seed).zipf(1.4, 400).clip(0, 30)

    for slots in (1, 3, 8, 31):
        hits = simulate(policy, accesses, slots, aging_accesses=40).tolist()
        if policy is CachePolicy.BELADY:
            # Of several that never come again any may leave, and no hit depends on which.
            assert sum(hits) == sum(hits_of_twin(policy, accesses.tolist(), slots, 40))
        else:
            assert hits == hits_of_twin(policy, accesses.tolist(), slots, 40)


def test_a_cycle_longer_than_the_cache_never_hits_under_lru_and_does_under_belady() -> None:
    accesses = np.tile(np.arange(10), 20)

    assert not simulate(CachePolicy.LRU, accesses, 9, aging_accesses=1).any()
    assert simulate(CachePolicy.BELADY, accesses, 9, aging_accesses=1).mean() > 0.8


def test_stack_distance_counts_what_came_between() -> None:
    assert stack_distances(np.array([1, 2, 2, 3, 1])).tolist() == [5, 5, 1, 5, 3]


def test_nothing_is_simulated_of_nothing() -> None:
    for policy in CachePolicy:
        assert simulate(policy, np.zeros(0, dtype=np.int64), 2, aging_accesses=5).tolist() == []
