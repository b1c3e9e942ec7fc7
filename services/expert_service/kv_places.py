"""Who stands where in the KV cache, within a bound in bytes: pure arithmetic, no tensors.

Memory is taken in slabs. A slab is cut into rows of one capacity (128 positions, 256, 512 and so on up to the longest
sequence), so that short sequences do not pay for a long one and attention can read neighbouring rows in place. Slabs
come when they are needed; empty ones stay for the next sequence and go when others need their bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

FIRST_CAPACITY: Final = 128
_SLAB_POSITIONS: Final = 4096
"""A slab of short rows has this many positions together, a slab of longer ones a single row."""
_LARGEST_SHARE: Final = 4
"""A slab of several rows takes at most this part of all memory: one that is not yet empty helps nobody else."""


@dataclass(frozen=True, order=True)
class Place:
    """A row of a slab: room for the keys and values of one sequence."""

    slab: int
    row: int
    capacity: int


@dataclass
class _Slab:
    """Rows of one capacity; `taps` are the bare trunks that are kept beside the model's own keys and values."""

    num_rows: int
    capacity: int
    free_rows: set[int]
    taps: set[int] = field(default_factory=set)

    @property
    def num_positions(self) -> int:
        """Positions in memory: every row has one more for padding."""
        return self.num_rows * (self.capacity + 1)

    @property
    def is_empty(self) -> bool:
        """Whether nobody stands here."""
        return len(self.free_rows) == self.num_rows


class KVPlaces:
    """Places for sequences, never more than `limit_bytes` of them.

    `layer_bytes` are the bytes of one position in each decoder layer. A sequence whose adapters work below the tap
    stands in a second stream of `tap_layer` layers too, in the same place.
    """

    def __init__(
        self,
        layer_bytes: Sequence[int],
        *,
        limit_bytes: int,
        max_context: int,
        max_rows: int,
        first_capacity: int = FIRST_CAPACITY,
    ) -> None:
        self._layer_bytes = tuple(layer_bytes)
        self._max_context = max_context
        self._max_rows = max_rows
        self._first_capacity = first_capacity
        self._slabs: dict[int, _Slab] = {}
        self._num_made = 0
        self.limit_bytes = limit_bytes
        self.num_changes = 0
        """Grows whenever slabs come or go, so that tensors can follow."""

    @property
    def headroom(self) -> int:
        """New tokens for which a newcomer should have room, so that it does not have to move or leave at once."""
        return max(1, self._first_capacity // 4)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slabs, empty ones included."""
        return sum(self._bytes_of(slab) for slab in self._slabs.values())

    @property
    def capacity_tokens(self) -> int:
        """Tokens that all slabs can hold, empty ones included."""
        return sum(slab.num_rows * slab.capacity for slab in self._slabs.values())

    def longest(self, tap_layer: int | None = None) -> int:
        """Positions of the longest sequence that fits when it is alone."""
        affordable = self.limit_bytes // self._position_bytes(() if tap_layer is None else (tap_layer,)) - 1
        return max(0, min(self._max_context, affordable))

    def take(self, num_positions: int, tap_layer: int | None = None) -> Place | None:
        """A place for a sequence of this length; None when there is none at present."""
        if num_positions > self.longest(tap_layer):
            return None
        capacity = self._capacity(num_positions, tap_layer)
        slab_id = self._find([capacity], tap_layer)
        if slab_id is None:
            slab_id = self._make(capacity, tap_layer)
        if slab_id is None:
            larger = sorted({slab.capacity for slab in self._slabs.values() if slab.capacity > capacity})
            slab_id = self._find(larger, tap_layer)
        if slab_id is None:
            return None
        slab = self._slabs[slab_id]
        row = min(slab.free_rows)
        slab.free_rows.remove(row)
        return Place(slab_id, row, slab.capacity)

    def give_back(self, place: Place) -> None:
        """The place is free again."""
        self._slabs[place.slab].free_rows.add(place.row)

    def drop_empty(self) -> None:
        """Give up the memory of slabs where nobody stands."""
        for slab_id in [slab_id for slab_id, slab in self._slabs.items() if slab.is_empty]:
            self._drop(slab_id)

    def num_rows(self, slab_id: int) -> int:
        """Rows of a slab."""
        return self._slabs[slab_id].num_rows

    def slabs(self, tap_layer: int | None = None) -> Iterator[int]:
        """Slabs that have memory: of the model's own keys and values, or of a trunk."""
        return (slab_id for slab_id, slab in self._slabs.items() if tap_layer is None or tap_layer in slab.taps)

    def _capacity(self, num_positions: int, tap_layer: int | None) -> int:
        """Doubling from the first capacity, ending at the longest sequence."""
        capacity = self._first_capacity
        while capacity < num_positions:
            capacity *= 2
        return min(capacity, self.longest(tap_layer))

    def _find(self, capacities: Sequence[int], tap_layer: int | None) -> int | None:
        """A slab with a free row, the shortest rows first, then the fullest slab, so that rows stay close together."""
        fitting = [
            (capacities.index(slab.capacity), len(slab.free_rows), slab_id)
            for slab_id, slab in self._slabs.items()
            if slab.free_rows and slab.capacity in capacities
        ]
        return next((slab_id for *_, slab_id in sorted(fitting) if self._carries(slab_id, tap_layer)), None)

    def _carries(self, slab_id: int, tap_layer: int | None) -> bool:
        """Whether a slab has, or can now get, a trunk's keys and values beside the model's own."""
        slab = self._slabs[slab_id]
        if tap_layer is None or tap_layer in slab.taps:
            return True
        if not self._afford(slab.num_positions * self._trunk_bytes(tap_layer), keep=slab_id):
            return False
        slab.taps.add(tap_layer)
        self.num_changes += 1
        return True

    def _make(self, capacity: int, tap_layer: int | None) -> int | None:
        """A new slab with as many rows as are usual and affordable."""
        taps = set() if tap_layer is None else {tap_layer}
        row_bytes = (capacity + 1) * self._position_bytes(taps)
        if not self._afford(row_bytes):
            return None
        usual = min(self._max_rows, _SLAB_POSITIONS // capacity, self.limit_bytes // _LARGEST_SHARE // row_bytes)
        num_rows = min(max(1, usual), (self.limit_bytes - self.num_bytes) // row_bytes)
        self._num_made += 1
        self.num_changes += 1
        self._slabs[self._num_made] = _Slab(num_rows, capacity, set(range(num_rows)), taps)
        return self._num_made

    def _afford(self, more_bytes: int, *, keep: int | None = None) -> bool:
        """Whether so much fits, after empty slabs (but `keep`) are given up where that helps."""
        empty = [slab_id for slab_id, slab in self._slabs.items() if slab.is_empty and slab_id != keep]
        left_bytes = self.limit_bytes - self.num_bytes
        if left_bytes + sum(self._bytes_of(self._slabs[slab_id]) for slab_id in empty) < more_bytes:
            return False
        for slab_id in empty:
            if left_bytes >= more_bytes:
                break
            left_bytes += self._bytes_of(self._slabs[slab_id])
            self._drop(slab_id)
        return True

    def _drop(self, slab_id: int) -> None:
        del self._slabs[slab_id]
        self.num_changes += 1

    def _bytes_of(self, slab: _Slab) -> int:
        return slab.num_positions * self._position_bytes(slab.taps)

    def _position_bytes(self, taps: set[int] | tuple[int, ...]) -> int:
        return sum(self._layer_bytes) + sum(self._trunk_bytes(tap_layer) for tap_layer in taps)

    def _trunk_bytes(self, tap_layer: int) -> int:
        return sum(self._layer_bytes[:tap_layer])
