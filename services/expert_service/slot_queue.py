"""Who gets slots next: first come first served, except that nobody idles behind one whose experts do not fit yet.

A sequence that must wait for slots may be overtaken by later ones whose experts are resident or fit beside those in
use, `max_overtaken` times. Then nobody passes it any more; those that hold slots end in bounded time, so it gets its
own. Sequences without adapters take no slot from anybody and always pass.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.sequence import Sequence

_MAX_AHEAD: Final = 16
"""Sequences that may wait ahead of one that is let through: a bound on the time that a step spends on the queue."""


class SlotQueue:
    """Reserves slots for waiting sequences. Engine thread only."""

    def __init__(self, adapters: AdapterCache, *, max_overtaken: int) -> None:
        self._adapters = adapters
        self._max_overtaken = max_overtaken

    def holders(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        """Waiting sequences that hold slots, in order of arrival; slots are reserved as one goes along."""
        ahead: list[Sequence] = []
        for sequence in tuple(waiting):
            if sequence.holds_slots or self._reserve(sequence, ahead):
                yield sequence

    def _reserve(self, sequence: Sequence, ahead: list[Sequence]) -> bool:
        if not sequence.adapters:
            return self._adapters.reserve(sequence)
        if len(ahead) >= _MAX_AHEAD or any(other.num_overtaken >= self._max_overtaken for other in ahead):
            return False
        if not self._adapters.reserve(sequence):
            ahead.append(sequence)
            return False
        for other in ahead:
            other.num_overtaken += 1
        return True
