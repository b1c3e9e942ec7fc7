"""Keys and values of all sequences in flight: one row per sequence, read by unmodified transformers attention.

Shape letters: B rows of a forward pass, H key/value heads, Q new tokens per row, T positions kept, D head size.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

_FIRST_CAPACITY: Final = 128


@dataclass(frozen=True)
class CacheView:
    """The part of the cache that one forward pass writes and reads.

    `positions_BQ` says where each new token belongs (the scratch column for padding). Rows that lie side by side are
    read in place, others are copied together.
    """

    rows_B: Tensor
    span: slice | None
    positions_BQ: Tensor
    num_positions: int


class SlotKVCache(Cache):
    """A bounded cache of `num_rows` sequences of at most `max_context` tokens each.

    Memory grows by doubling with the longest sequence seen and ends at num_rows x max_context positions.
    """

    def __init__(self, *, num_layers: int, num_rows: int, max_context: int) -> None:
        self.num_rows = num_rows
        self.max_context = max_context
        self.capacity = min(_FIRST_CAPACITY, max_context)
        self.view: CacheView | None = None
        super().__init__(layers=[_SlotLayer(self) for _ in range(num_layers)])

    def reserve(self, num_positions: int) -> None:
        """Make room for sequences of this length."""
        if num_positions > self.max_context:
            raise ValueError(f"{num_positions} positions exceed the cache's {self.max_context}")
        if num_positions > self.capacity:
            self.capacity = min(max(num_positions, 2 * self.capacity), self.max_context)
            for layer in self._slot_layers():
                layer.grow()

    def move(self, source: int, target: int, num_positions: int) -> None:
        """Give row `target` the first positions of row `source`."""
        for layer in self._slot_layers():
            layer.move(source, target, num_positions)

    def swap(self, first: int, second: int, num_positions: int) -> None:
        """Exchange the first positions of two rows."""
        for layer in self._slot_layers():
            layer.swap(first, second, num_positions)

    def clear_row(self, row: int) -> None:
        """Zero a row: after numbers that are not finite, which masks alone would not keep from the next sequence."""
        for layer in self._slot_layers():
            layer.clear_row(row)

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return sum(layer.num_bytes for layer in self._slot_layers())

    def _slot_layers(self) -> "list[_SlotLayer]":
        return [layer for layer in self.layers if isinstance(layer, _SlotLayer)]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one decoder layer, [rows, H, capacity + 1, D]; the last position is scratch for padding."""

    def __init__(self, owner: SlotKVCache) -> None:
        # The parent's __init__ sets these same three and nothing else.
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take heads, sizes, dtype and device from the first keys and values."""
        rows, positions = self._owner.num_rows, self._owner.capacity + 1
        self.keys = key_states.new_zeros(rows, key_states.shape[1], positions, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], positions, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, Q, D] where the view says; return everything the view reads, [B, H, T, D]."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        view = self._owner.view
        assert view is not None
        assert self.keys is not None
        assert self.values is not None
        where = (view.rows_B[:, None], slice(None), view.positions_BQ)
        self.keys[where] = key_states.transpose(1, 2)
        self.values[where] = value_states.transpose(1, 2)
        keys, values = self.keys[:, :, : view.num_positions], self.values[:, :, : view.num_positions]
        if view.span is not None:
            return keys[view.span], values[view.span]
        return keys.index_select(0, view.rows_B), values.index_select(0, view.rows_B)

    def grow(self) -> None:
        """Follow the owner's capacity; scratch content is not kept."""
        if self.keys is None or self.values is None:
            return
        self.keys, self.values = (_wider(tensor, self._owner.capacity + 1) for tensor in (self.keys, self.values))

    def move(self, source: int, target: int, num_positions: int) -> None:
        """Copy a row's first positions over another's."""
        for tensor in self._tensors():
            tensor[target, :, :num_positions] = tensor[source, :, :num_positions]

    def swap(self, first: int, second: int, num_positions: int) -> None:
        """Exchange two rows' first positions."""
        for tensor in self._tensors():
            kept = tensor[first, :, :num_positions].clone()
            tensor[first, :, :num_positions] = tensor[second, :, :num_positions]
            tensor[second, :, :num_positions] = kept

    def clear_row(self, row: int) -> None:
        """Zero one row and the scratch column."""
        for tensor in self._tensors():
            tensor[row].zero_()
            tensor[:, :, -1].zero_()

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def get_seq_length(self) -> int:
        """0: positions and masks are always given, never derived from a common length."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What attention will see."""
        view = self._owner.view
        return (view.num_positions if view else query_length), 0

    def get_max_length(self) -> int:
        """The owner's bound."""
        return self._owner.max_context

    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.keys, self.values) if tensor is not None]


def _wider(tensor: Tensor, num_positions: int) -> Tensor:
    """The same content with room for more positions."""
    rows, heads, _, size = tensor.shape
    wider = tensor.new_zeros(rows, heads, num_positions, size)
    wider[:, :, : tensor.shape[2] - 1] = tensor[:, :, :-1]
    return wider


def make_view(rows: list[int], positions_BQ: Tensor, num_positions: int) -> CacheView:
    """A view on these rows, in this order."""
    side_by_side = rows == list(range(rows[0], rows[0] + len(rows)))
    return CacheView(
        rows_B=torch.tensor(rows, device=positions_BQ.device),
        span=slice(rows[0], rows[0] + len(rows)) if side_by_side else None,
        positions_BQ=positions_BQ,
        num_positions=num_positions,
    )
