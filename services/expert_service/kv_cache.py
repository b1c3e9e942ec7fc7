"""Keys and values of all sequences in flight, read by unmodified transformers attention.

Every sequence stands in a row of a slab (`kv_places.py` says which). A pass reads *runs*: neighbouring rows of one
slab, in place. Shape letters: B rows of a forward pass, R rows of a run, H key/value heads, Q new tokens per row,
T positions read, D head size.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from services.expert_service.kv_places import KVPlaces, Place


@dataclass(frozen=True)
class Run:
    """Neighbouring rows of a slab that stand side by side in a pass."""

    slab: int
    capacity: int
    rows: slice
    batch: slice
    where: tuple[Tensor, slice, Tensor]
    """Where new tokens are written: rows_R1, all heads, positions_RQ (the scratch column for padding)."""
    num_positions: int
    """T: positions up to the longest of these rows."""


@dataclass(frozen=True)
class CacheView:
    """What one forward pass writes and reads."""

    runs: tuple[Run, ...]
    num_positions: int


class RunTensors(tuple[Tensor, ...]):
    """Keys or values of several runs, [R, H, T, D] each, in the order of the batch."""

    __slots__ = ()


class SlotKVCache(Cache):
    """Keys and values of `num_layers` layers in the slabs of `places`.

    `by_run`: attention takes the runs of a pass one by one (`run_attention.py`); otherwise they are copied together.
    """

    def __init__(self, *, num_layers: int, places: KVPlaces, tap_layer: int | None = None, by_run: bool) -> None:
        self.places = places
        self.by_run = by_run
        self.view: CacheView | None = None
        self._tap_layer = tap_layer
        self._num_changes_seen = 0
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])

    def follow(self) -> None:
        """Free the memory of slabs that are no longer there; before any new one takes memory."""
        if self._num_changes_seen != self.places.num_changes:
            self._num_changes_seen = self.places.num_changes
            kept = set(self.places.slabs(self._tap_layer))
            for layer in self._slot_layers():
                layer.keep(kept)

    def move(self, source: Place, target: Place, num_positions: int) -> None:
        """Copy a sequence's keys and values from one place to another."""
        if target.slab in self.places.slabs(self._tap_layer):
            for layer in self._slot_layers():
                layer.move(source, target, num_positions)

    def clear(self, place: Place) -> None:
        """Zero a place: after numbers that are not finite, which masks alone would not keep from the next sequence."""
        for layer in self._slot_layers():
            layer.clear(place)

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return sum(layer.num_bytes for layer in self._slot_layers())

    def _slot_layers(self) -> "list[_SlotLayer]":
        return [layer for layer in self.layers if isinstance(layer, _SlotLayer)]


class _SlotLayer(CacheLayerMixin):
    """One decoder layer: keys and values per slab, [rows, H, capacity + 1, D]; the last position is for padding."""

    def __init__(self, owner: SlotKVCache) -> None:
        # The parent's __init__ sets these same three and nothing else.
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False
        self._owner = owner
        self._slabs: dict[int, tuple[Tensor, Tensor]] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: slabs take memory when they are first written."""

    def update(  # type: ignore[override]  # several runs are a tuple, which run_attention understands
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor | RunTensors, Tensor | RunTensors]:
        """Write [B, H, Q, D] where the view says; return everything the view reads, [B, H, T, D] or in runs."""
        view = self._owner.view
        assert view is not None
        read = [self._write_and_read(run, key_states, value_states) for run in view.runs]
        if len(read) == 1:
            return read[0]
        keys, values = (RunTensors(tensors) for tensors in zip(*read, strict=True))
        if self._owner.by_run:
            return keys, values
        return _together(keys, view.num_positions), _together(values, view.num_positions)

    def keep(self, slabs: set[int]) -> None:
        """Forget all other slabs."""
        self._slabs = {slab: tensors for slab, tensors in self._slabs.items() if slab in slabs}

    def move(self, source: Place, target: Place, num_positions: int) -> None:
        """Copy the first positions of a place."""
        old = self._slabs.get(source.slab)
        if old is None:
            return
        new = self._slab(target.slab, target.capacity, *old)
        for old_tensor, new_tensor in zip(old, new, strict=True):
            new_tensor[target.row, :, :num_positions] = old_tensor[source.row, :, :num_positions]

    def clear(self, place: Place) -> None:
        """Zero one row."""
        for tensor in self._slabs.get(place.slab, ()):
            tensor[place.row].zero_()

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(tensor.nbytes for tensors in self._slabs.values() for tensor in tensors)

    def get_seq_length(self) -> int:
        """0: positions and masks are always given, never derived from a common length."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What attention will see."""
        view = self._owner.view
        return (view.num_positions if view else query_length), 0

    def get_max_length(self) -> int:
        """The longest sequence."""
        return self._owner.places.longest()

    def _write_and_read(self, run: Run, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._slab(run.slab, run.capacity, key_states, value_states)
        keys[run.where] = key_states[run.batch].transpose(1, 2)
        values[run.where] = value_states[run.batch].transpose(1, 2)
        return keys[run.rows, :, : run.num_positions], values[run.rows, :, : run.num_positions]

    def _slab(self, slab: int, capacity: int, keys_like: Tensor, values_like: Tensor) -> tuple[Tensor, Tensor]:
        """A slab's tensors; heads, sizes, dtype and device as in [_, H, _, D]. Zeros, for masks do not stop a NaN."""
        tensors = self._slabs.get(slab)
        if tensors is None:
            num_rows = self._owner.places.num_rows(slab)
            keys, values = (
                like.new_zeros(num_rows, like.shape[1], capacity + 1, like.shape[3])
                for like in (keys_like, values_like)
            )
            tensors = self._slabs[slab] = (keys, values)
        return tensors


def make_view(places: Items[Place], positions_BQ: Tensor, ends: Items[int]) -> CacheView:
    """The view of a pass: a place, positions (-1 for padding) and the position after the last for each row."""
    starts = [0, *(row for row in range(1, len(places)) if not _side_by_side(places[row - 1], places[row]))]
    cuts = pairwise([*starts, len(places)])
    runs = tuple(_run(places[start:end], positions_BQ[start:end], ends[start:end], start) for start, end in cuts)
    return CacheView(runs, num_positions=max(ends))


def _run(places: Items[Place], positions_RQ: Tensor, ends: Items[int], start: int) -> Run:
    slab, first, capacity = places[0].slab, places[0].row, places[0].capacity
    rows = slice(first, first + len(places))
    rows_R1 = torch.arange(rows.start, rows.stop, device=positions_RQ.device)[:, None]
    scratch = torch.where(positions_RQ >= 0, positions_RQ, capacity)
    return Run(slab, capacity, rows, slice(start, start + len(places)), (rows_R1, slice(None), scratch), max(ends))


def _side_by_side(first: Place, second: Place) -> bool:
    return first.slab == second.slab and first.row + 1 == second.row


def _together(runs: Iterable[Tensor], num_positions: int) -> Tensor:
    """A copy of all runs as one tensor; what lies behind a run's end is masked anyway."""
    padded = [torch.nn.functional.pad(run, (0, 0, 0, num_positions - run.shape[2])) for run in runs]
    return torch.cat(padded)
