"""Caches that are never asked twice for nothing: which accesses find what they want. Plain loops over heaps, as no
array operation knows what has been evicted before."""

from bisect import bisect_left
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from services.traces.statistics.results import CachePolicy

Hits = NDArray[np.bool_]


def simulate(policy: CachePolicy, accesses: NDArray[np.int64], slots: int, *, aging_accesses: int) -> Hits:
    """[A] whether each access to an object, told by its number, is a hit. What is missed always comes in."""
    if policy is CachePolicy.LRU:
        return stack_distances(accesses) <= slots
    if policy is CachePolicy.BELADY:
        return _belady(accesses, slots)
    return _least_frequent(accesses, slots, aging_accesses if policy is CachePolicy.LFU_AGING else 0)


def stack_distances(accesses: NDArray[np.int64]) -> NDArray[np.int64]:
    """[A] objects accessed since this one was, itself among them: an LRU cache of so many slots and more has it still
    (Mattson et al. 1970, doi:10.1147/sj.92.0078). For a first access more than there are objects."""
    never = int(accesses.max(initial=0)) + 2
    last: dict[int, int] = {}
    times: list[int] = []  # of the last accesses, one for each object, rising
    distances = np.empty(len(accesses), dtype=np.int64)
    for time, wanted in enumerate(accesses.tolist()):
        before = last.get(wanted)
        if before is None:
            distances[time] = never
        else:
            place = bisect_left(times, before)
            distances[time] = len(times) - place
            del times[place]
        times.append(time)
        last[wanted] = time
    return distances


def _belady(accesses: NDArray[np.int64], slots: int) -> Hits:
    """What is used again last leaves (Belady 1966, doi:10.1147/sj.52.0078)."""
    hits = np.zeros(len(accesses), dtype=np.bool_)
    next_use: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    for time, (wanted, following) in enumerate(zip(accesses.tolist(), _next_uses(accesses), strict=True)):
        if wanted in next_use:
            hits[time] = True
        elif len(next_use) == slots:
            negative, leaving = heappop(farthest)
            # An object that was used since has a newer entry; this one is of no use.
            while next_use.get(leaving) != -negative:
                negative, leaving = heappop(farthest)
            del next_use[leaving]
        next_use[wanted] = following
        heappush(farthest, (-following, wanted))
    return hits


def _next_uses(accesses: NDArray[np.int64]) -> list[int]:
    """[A] when each is accessed again; those that never are differ, so that each entry of a heap is its own."""
    count = len(accesses)
    following = np.arange(count, 2 * count)
    order = np.argsort(accesses, kind="stable")
    again = accesses[order][1:] == accesses[order][:-1]
    following[order[:-1][again]] = order[1:][again]
    return following.tolist()


def _least_frequent(accesses: NDArray[np.int64], slots: int, aging_accesses: int) -> Hits:
    """What was used least often since it came in leaves, of equals what was used longest ago."""
    hits = np.zeros(len(accesses), dtype=np.bool_)
    held: dict[int, tuple[int, int]] = {}  # uses and the last one's time
    rarest: list[tuple[int, int, int]] = []
    for time, wanted in enumerate(accesses.tolist()):
        if aging_accesses and time % aging_accesses == 0:
            held = {each: (uses // 2, last) for each, (uses, last) in held.items()}
            rarest = [(uses, last, each) for each, (uses, last) in held.items()]
            heapify(rarest)
        before = held.get(wanted)
        if before is not None:
            hits[time] = True
        elif len(held) == slots:
            uses, last, leaving = heappop(rarest)
            while held.get(leaving) != (uses, last):
                uses, last, leaving = heappop(rarest)
            del held[leaving]
        now = (before[0] + 1 if before is not None else 1, time)
        held[wanted] = now
        heappush(rarest, (*now, wanted))
    return hits
