"""Which adapters are in slots: least recently used leaves first, whoever is in use stays. Engine thread only.

Two bounds: the number of slots and the bytes of all resident adapters (their weights as loaded; the mixture's compact
copy of the few that speak at a moment comes on top).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.expert_service.sequence import PlannedAdapter
from services.shared.errors import InvalidRequest
from services.shared.modeling.lora_mixture import LoraMixture


@dataclass
class _Resident:
    """An adapter in a slot."""

    name: str
    slot: int
    num_bytes: int
    num_users: int = 0


@dataclass
class CacheCounts:
    """What happened so far."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class AdapterCache:
    """Slots of a mixture by adapter digest."""

    def __init__(self, mixture: LoraMixture, *, slot_bytes: int) -> None:
        self._mixture = mixture
        self._slot_bytes = slot_bytes
        self._residents: dict[str, _Resident] = {}  # in order of last use, oldest first
        self.counts = CacheCounts()

    @property
    def num_slots(self) -> int:
        """Adapters that fit at once."""
        return self._mixture.num_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all residents."""
        return sum(resident.num_bytes for resident in self._residents.values())

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests in slots."""
        return tuple(self._residents)

    @property
    def pinned(self) -> tuple[str, ...]:
        """Digests in use."""
        return tuple(digest for digest, resident in self._residents.items() if resident.num_users)

    def check_fits(self, adapters: Sequence[PlannedAdapter]) -> None:
        """Raise InvalidRequest when these could never be resident together."""
        needed = {planned.digest: planned.adapter.num_bytes for planned in adapters}
        if len(needed) > self.num_slots:
            raise InvalidRequest(
                f"The plan names {len(needed)} experts, this replica has {self.num_slots} slots. Name fewer "
                "candidates, or raise expert_service.num_slots.",
                param="plan.candidates",
                code="too_many_experts",
            )
        if sum(needed.values()) > self._slot_bytes:
            raise InvalidRequest(
                f"The plan's experts take {sum(needed.values())} bytes, all slots together {self._slot_bytes}. Name "
                "fewer candidates, or raise expert_service.slot_bytes.",
                param="plan.candidates",
                code="too_many_experts",
            )

    def acquire(self, adapters: Sequence[PlannedAdapter]) -> dict[str, int] | None:
        """Slots by expert name, pinned until released; None when too much is pinned at present."""
        wanted = {planned.digest: planned for planned in adapters}
        missing = [planned for digest, planned in wanted.items() if digest not in self._residents]
        victims = self._victims(missing, keep=wanted)
        if victims is None:
            return None
        for digest in victims:
            self._mixture.clear(self._residents.pop(digest).slot)
            self.counts.evictions += 1
        for planned in missing:
            self._load(planned)
        self.counts.misses += len(missing)
        self.counts.hits += len(wanted) - len(missing)
        for digest in wanted:
            self._residents[digest] = resident = self._residents.pop(digest)
            resident.num_users += 1
        return {planned.name: self._residents[planned.digest].slot for planned in adapters}

    def release(self, adapters: Sequence[PlannedAdapter]) -> None:
        """One user less for each."""
        for digest in {planned.digest for planned in adapters}:
            self._residents[digest].num_users -= 1

    def _victims(self, missing: Sequence[PlannedAdapter], keep: dict[str, PlannedAdapter]) -> list[str] | None:
        """Whom to evict so that `missing` fits, oldest first; None when that is not enough."""
        slots_over = len(self._residents) + len(missing) - self.num_slots
        bytes_over = self.num_bytes + sum(planned.adapter.num_bytes for planned in missing) - self._slot_bytes
        victims: list[str] = []
        for digest, resident in self._residents.items():
            if slots_over <= 0 and bytes_over <= 0:
                break
            if not resident.num_users and digest not in keep:
                victims.append(digest)
                slots_over -= 1
                bytes_over -= resident.num_bytes
        return victims if slots_over <= 0 and bytes_over <= 0 else None

    def _load(self, planned: PlannedAdapter) -> None:
        taken = {resident.slot for resident in self._residents.values()}
        slot = next(slot for slot in range(self.num_slots) if slot not in taken)
        self._mixture.load(slot, planned.adapter)
        self._residents[planned.digest] = _Resident(planned.name, slot, planned.adapter.num_bytes)
