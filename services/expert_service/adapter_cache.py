"""Which adapters are in slots: least recently used leaves first, whoever is in use stays. Engine thread only.

Two bounds: the number of slots and the bytes of all resident adapters (their weights as loaded; the mixture's compact
copy of the few that speak at a moment comes on top). A sequence first reserves slots, which starts the copies to the
device that it lacks, and takes them when all are there; nobody else waits for a copy.

Pins are adapters that stay although nobody uses them. They leave at least one slot, and as many bytes as the largest
of them, to others. A plan that was accepted before they came, and that does not fit beside them, may still push them
out for its time.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

from services.expert_service.host_cache import HostCache
from services.expert_service.sequence import PlannedAdapter, Sequence
from services.shared.errors import Conflict, InvalidRequest
from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import LoraMixture

_HOST_RESIDENT_TOLD: Final = 256


@dataclass
class _Resident:
    """An adapter in a slot, or on its way there."""

    slot: int
    num_bytes: int
    copy: "Future[Adapter]"
    num_users: int = 0
    is_attached: bool = False

    @property
    def has_failed(self) -> bool:
        """The copy to the device broke off."""
        return self.copy.done() and self.copy.exception() is not None


@dataclass
class CacheCounts:
    """What happened so far."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    copies: int = 0
    copy_seconds: float = 0.0


class AdapterCache:
    """Slots of a mixture by adapter digest.

    `host` takes what leaves a slot. Copies are made by `copies`; without it at once, which on a CPU copies nothing.
    """

    def __init__(
        self, mixture: LoraMixture, *, slot_bytes: int, host: HostCache | None = None, copies: Executor | None = None
    ) -> None:
        self._mixture = mixture
        self._slot_bytes = slot_bytes
        self._host = host
        self._copies = copies
        self._residents: dict[str, _Resident] = {}  # in order of last use, oldest first
        self._free_slots = list(range(mixture.num_slots - 1, -1, -1))
        self._num_bytes = 0
        self._pins: dict[str, Adapter] = {}
        self.counts = CacheCounts()

    @property
    def num_slots(self) -> int:
        """Adapters that fit at once."""
        return self._mixture.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all residents."""
        return self._num_bytes

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests in slots."""
        return tuple(self._residents)

    @property
    def pinned(self) -> tuple[str, ...]:
        """Digests in use."""
        return tuple(digest for digest, resident in self._residents.items() if resident.num_users)

    @property
    def host_resident(self) -> tuple[str, ...]:
        """Digests in host memory, the last used: enough for a router to choose by, few enough to be told often."""
        return self._host.last_used(_HOST_RESIDENT_TOLD) if self._host else ()

    @property
    def host_bytes(self) -> int:
        """Bytes of all adapters in host memory."""
        return self._host.num_bytes if self._host else 0

    @property
    def pins(self) -> tuple[str, ...]:
        """Digests that stay."""
        return tuple(self._pins)

    def check_fits(self, adapters: Items[PlannedAdapter]) -> None:
        """Raise InvalidRequest when these could never be resident together, beside what is pinned. Any thread."""
        pins = self._pins
        needed = {planned.digest: planned.adapter for planned in adapters}
        num_slots, num_bytes = self._room_beside(pins, needed)
        beside = f" beside {len(pins)} pinned experts" if pins else ""
        if len(needed) > num_slots:
            raise InvalidRequest(
                f"The plan names {len(needed)} experts, this replica has {num_slots} slots{beside}. Name fewer "
                "candidates, unpin some, or raise expert_service.num_slots.",
                param="plan.candidates",
                code="too_many_experts",
            )
        needed_bytes = _sum_of_bytes(needed.values())
        if needed_bytes > num_bytes:
            raise InvalidRequest(
                f"The plan's experts take {needed_bytes} bytes, all slots together {num_bytes}{beside}. Name "
                "fewer candidates, unpin some, or raise expert_service.slot_bytes.",
                param="plan.candidates",
                code="too_many_experts",
            )

    def check_pins(self, num_pins: int) -> None:
        """Raise Conflict when so many pins leave no slot to others. Any thread."""
        if num_pins >= self.num_slots:
            raise Conflict(
                f"{num_pins} experts would be pinned in {self.num_slots} slots, and one must stay free for others. "
                "Unpin one, or raise expert_service.num_slots.",
                param="name",
                code="too_many_pins",
            )

    def pin(self, adapters: Mapping[str, Adapter]) -> None:
        """Keep exactly these from now on, brought in as soon as slots are free. Conflict when they leave no room."""
        self.check_pins(len(adapters))
        largest = max((adapter.num_bytes for adapter in adapters.values()), default=0)
        if _sum_of_bytes(adapters.values()) + largest > self._slot_bytes:
            raise Conflict(
                f"The pinned experts would take {_sum_of_bytes(adapters.values())} bytes of the {self._slot_bytes} of "
                "all slots, and there must be room for one more. Unpin one, or raise expert_service.slot_bytes.",
                param="name",
                code="too_many_pins",
            )
        self._pins = dict(adapters)
        self.bring_in_pins()

    def bring_in_pins(self) -> None:
        """Pinned adapters that are not in slots yet, as far as there is room."""
        for digest, adapter in self._pins.items():
            if digest not in self._residents and self._make_room({digest: adapter}):
                self._bring_in(digest, adapter)

    def reserve(self, sequence: Sequence) -> bool:
        """Hold slots for a sequence until `release`, bringing in what is missing; False when too much is in use."""
        if sequence.holds_slots:
            return True
        wanted = {planned.digest: planned.adapter for planned in sequence.adapters}
        missing = [digest for digest in wanted if digest not in self._residents]
        if not self._make_room(wanted):
            return False
        for digest in missing:
            self._bring_in(digest, wanted[digest])
        self.counts.misses += len(missing)
        self.counts.hits += len(wanted) - len(missing)
        for digest in wanted:
            self._residents[digest] = resident = self._residents.pop(digest)
            resident.num_users += 1
        sequence.holds_slots = True
        return True

    def slots_of(self, sequence: Sequence) -> dict[str, int] | None:
        """What is reserved, by expert name; None while a copy is under way. Raises what made a copy fail."""
        reserved = [self._residents[planned.digest] for planned in sequence.adapters]
        if not all(resident.copy.done() for resident in reserved):
            return None
        for resident in reserved:
            if not resident.is_attached:
                self._mixture.install(resident.slot, resident.copy.result())
                resident.is_attached = True
        return {planned.name: resident.slot for planned, resident in zip(sequence.adapters, reserved, strict=True)}

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's slots back, if it holds any; what failed to arrive makes room at once."""
        if not sequence.holds_slots:
            return
        sequence.holds_slots, sequence.slots = False, {}
        for digest in {planned.digest for planned in sequence.adapters}:
            resident = self._residents[digest]
            resident.num_users -= 1
            if resident.has_failed and not resident.num_users:
                self._evict(digest)

    def _make_room(self, wanted: Mapping[str, Adapter]) -> bool:
        """Evict what it takes for all of `wanted` to be in slots, the oldest first; False when that is not enough."""
        victims = self._victims(wanted)
        for digest in victims or ():
            self._evict(digest)
            self.counts.evictions += 1
        return victims is not None

    def _victims(self, wanted: Mapping[str, Adapter]) -> list[str] | None:
        new = [adapter.num_bytes for digest, adapter in wanted.items() if digest not in self._residents]
        slots_over = len(new) - len(self._free_slots)
        bytes_over = self._num_bytes + sum(new) - self._slot_bytes
        victims: list[str] = []
        for digest in self._evictable(wanted):
            if slots_over <= 0 and bytes_over <= 0:
                break
            victims.append(digest)
            slots_over -= 1
            bytes_over -= self._residents[digest].num_bytes
        return victims if slots_over <= 0 and bytes_over <= 0 else None

    def _evictable(self, wanted: Mapping[str, Adapter]) -> Iterator[str]:
        """Who may leave for `wanted`, in order."""
        idle = [
            digest
            for digest, resident in self._residents.items()
            if not resident.num_users and resident.copy.done() and digest not in wanted
        ]
        yield from (digest for digest in idle if digest not in self._pins)
        num_slots, num_bytes = self._room_beside(self._pins, wanted)
        if len(wanted) > num_slots or _sum_of_bytes(wanted.values()) > num_bytes:
            yield from (digest for digest in idle if digest in self._pins)

    def _room_beside(self, pins: Mapping[str, Adapter], wanted: Mapping[str, Adapter]) -> tuple[int, int]:
        """Slots and bytes that `wanted` may take while all other pins stay."""
        others = [adapter for digest, adapter in pins.items() if digest not in wanted]
        return self.num_slots - len(others), self._slot_bytes - _sum_of_bytes(others)

    def _bring_in(self, digest: str, adapter: Adapter) -> None:
        """Give an adapter a free slot and start its copy."""
        copy = self._copies.submit(self._prepared, adapter) if self._copies else self._copied_now(adapter)
        self._residents[digest] = _Resident(self._free_slots.pop(), adapter.num_bytes, copy)
        self._num_bytes += adapter.num_bytes

    def _prepared(self, adapter: Adapter) -> Adapter:
        """As a slot takes it, with a note of how long that took; on the one thread that copies."""
        started_at = time.perf_counter()
        prepared = self._mixture.prepare(adapter)
        self.counts.copies += 1
        self.counts.copy_seconds += time.perf_counter() - started_at
        return prepared

    def _copied_now(self, adapter: Adapter) -> "Future[Adapter]":
        copy: Future[Adapter] = Future()
        try:
            copy.set_result(self._prepared(adapter))
        except Exception as error:  # noqa: BLE001  # it belongs to the sequences that wait for it
            copy.set_exception(error)
        return copy

    def _evict(self, digest: str) -> None:
        """Empty a slot; what was in it lives on in host memory, as the last used, while the budget there lasts."""
        if self._host is not None:
            self._host.get(digest)
        resident = self._residents.pop(digest)
        self._free_slots.append(resident.slot)
        self._num_bytes -= resident.num_bytes
        if resident.is_attached:
            self._mixture.clear(resident.slot)


def _sum_of_bytes(adapters: Iterable[Adapter]) -> int:
    return sum(adapter.num_bytes for adapter in adapters)
