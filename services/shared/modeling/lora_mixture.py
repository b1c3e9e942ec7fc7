"""The per-token mixture of LoRA experts (DESIGN D3): y = W x + sum_e w_te * scaling_e * B_e (A_e x).

Adapters sit in slots. A forward pass names the active slots and one weight per token and slot; every adapted linear
layer then adds two products over a compact copy of the active experts: shrink to the narrow space, weigh there
(R is much smaller than O), expand. Cost follows what is active, never what is merely resident. The layer stands in
front of the `forward` of unmodified modules and knows nothing of batches, sequences or caches.

Shape letters: N tokens of a pass (B * T flattened), S active slots, R rank columns of all active experts together,
I features in, O features out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from services.shared.modeling.adapter_files import Adapter, LayerWeights
from services.shared.modeling.rank_buckets import bucket_of
from services.shared.modeling.wiring import BaseShapes, decoder_stack

_KEEP_HOT_PASSES: Final = 32
"""How long an expert stays in the compact copy after its last use: a rebuild costs more than some idle columns."""


class Gates(NamedTuple):
    """Who speaks in one pass: weights_NS per flattened token and active slot, in the order of `slots`."""

    weights_NS: Tensor
    slots: tuple[int, ...]


@dataclass
class _Pass:
    """What all layers of one forward pass share."""

    weights_NS: Tensor
    hot: tuple[int, ...]
    expanded_NR: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def per_column(self, ranks: tuple[int, ...]) -> Tensor:
        """weights_NR for a layer whose active experts take `ranks` columns each; made once per pass and layout."""
        expanded_NR = self.expanded_NR.get(ranks)
        if expanded_NR is None:
            columns_R = _column_owners(ranks, self.weights_NS.device)
            expanded_NR = self.expanded_NR[ranks] = self.weights_NS.index_select(1, columns_R)
        return expanded_NR


class _Compact(NamedTuple):
    """The active experts of one layer, side by side."""

    down_IR: Tensor
    up_RO: Tensor
    ranks: tuple[int, ...]


class LoraMixture:
    """Owns the mixture layers of one frozen base model. One thread at a time."""

    def __init__(self, model: nn.Module, *, num_slots: int) -> None:
        self.model = model
        self.num_slots = num_slots
        self.shapes = BaseShapes.of(model)
        self._modules = dict(model.named_modules())
        self._homes: dict[str, tuple[torch.device, torch.dtype | None]] = {}
        self._slots: list[Adapter | None] = [None] * num_slots
        self._layers: dict[str, _MixtureLayer] = {}
        self._hot: tuple[int, ...] = ()
        self._last_use: dict[int, int] = {}
        self._num_passes = 0
        self._active: _Pass | None = None

    @classmethod
    def attach(cls, model: nn.Module, *, num_slots: int) -> "LoraMixture":
        """A mixture over `model`, frozen and put in eval mode. Layers are taken over when targeted."""
        model.requires_grad_(requires_grad=False)
        model.train(mode=False)
        return cls(model, num_slots=num_slots)

    def prepare(self, adapter: Adapter) -> Adapter:
        """`adapter` as a slot holds it: ranks padded, in each layer's dtype and on its device. Any thread.

        What already is so is not copied: on a CPU a slot and host memory share one copy of an adapter.
        """
        layers = {name: _padded(weights, *self._home(name)) for name, weights in adapter.layers.items()}
        is_ready = all(layers[name] is weights for name, weights in adapter.layers.items())
        return adapter if is_ready else Adapter(layers, adapter.report)

    def _home(self, name: str) -> tuple[torch.device, torch.dtype | None]:
        """Where a layer's adapters lie and in which dtype; None keeps the adapter's own, beside quantised weights."""
        home = self._homes.get(name)
        if home is None:
            weight = next(self._modules[name].parameters())
            home = self._homes[name] = (weight.device, weight.dtype if weight.is_floating_point() else None)
        return home

    def load(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter in a slot, replacing what was there."""
        self.clear(slot)
        self.install(slot, self.prepare(adapter))

    def install(self, slot: int, prepared: Adapter) -> None:
        """Put what `prepare` returned in an empty slot: links only, no copies."""
        self._slots[slot] = prepared
        for name, weights in prepared.layers.items():
            layer = self._layers.get(name)
            if layer is None:
                layer = self._layers[name] = _MixtureLayer(self, self._modules[name])
            layer.load(slot, weights)

    def clear(self, slot: int) -> None:
        """Empty a slot; layers that no adapter targets any more cost nothing again."""
        if self._slots[slot] is None:
            return
        self._slots[slot] = None
        self._last_use.pop(slot, None)
        self._hot = tuple(hot for hot in self._hot if hot != slot)
        for name in [name for name, layer in self._layers.items() if layer.clear(slot)]:
            del self._layers[name]

    def adapter(self, slot: int) -> Adapter | None:
        """What a slot holds."""
        return self._slots[slot]

    @contextmanager
    def gates(self, weights_NS: Tensor, slots: Sequence[int]) -> Iterator[None]:
        """Apply these weights in the forward pass inside.

        `weights_NS` has a row per flattened token (B * T) and a column per entry of `slots`; a column of zeros is
        legal, an empty `slots` is the base model alone. Differentiable in the weights when autograd is on.
        """
        if self._active is not None:
            raise RuntimeError("gates() does not nest")
        self._set(Gates(weights_NS, tuple(slots)))
        try:
            yield
        finally:
            self._active = None

    @contextmanager
    def trainable(self, slots: Sequence[int]) -> Iterator[list[Tensor]]:
        """The weights of these slots, side by side per layer, as leaves of autograd: what passes over exactly these
        slots multiply by inside. What the slots hold does not change, and is in force again afterwards.
        """
        self._hot = ()
        self._heat(tuple(slots))
        try:
            yield [leaf for layer in self._layers.values() for leaf in layer.compact_leaves(self._hot)]
        finally:
            for layer in self._layers.values():
                layer.forget_compact()

    @contextmanager
    def gates_at_tap(self, tap_layer: int, decide: Callable[[Tensor], Gates]) -> Iterator[None]:
        """Let the pass itself decide its gates: `decide(states_BTD)` gets the states after `tap_layer` layers.

        Layers below the tap run under the gates in force before (none, or those of an enclosing `gates`), all from the
        tap on under the answer. `tap_layer` 0 reads the embeddings. Differentiable like `gates`.
        """
        _, stack = decoder_stack(self.model)

        def at_tap(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._set(decide(args[0] if args else kwargs["hidden_states"]))

        before = self._active
        handle = stack[tap_layer].register_forward_pre_hook(at_tap, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._active = before

    def _set(self, gates: Gates) -> None:
        """Make `gates` those of the running pass, moving the compact copy only when a new expert speaks."""
        empty = [slot for slot in gates.slots if self._slots[slot] is None]
        if empty:
            raise ValueError(f"slots {empty} are empty")
        if gates.weights_NS.shape[1] != len(gates.slots):
            raise ValueError(f"{gates.weights_NS.shape[1]} weight columns for {len(gates.slots)} slots")
        if not gates.slots:
            self._active = None
            return
        self._heat(gates.slots)
        weights_NS = gates.weights_NS
        if self._hot != gates.slots:
            columns = torch.tensor([self._hot.index(slot) for slot in gates.slots], device=weights_NS.device)
            blank_NS = weights_NS.new_zeros(weights_NS.shape[0], len(self._hot))
            weights_NS = blank_NS.index_copy(1, columns, weights_NS)
        self._active = _Pass(weights_NS, self._hot)

    def _heat(self, slots: tuple[int, ...]) -> None:
        """Choose the hot set: what speaks now, and for a while what spoke lately."""
        self._num_passes += 1
        for slot in slots:
            self._last_use[slot] = self._num_passes
        oldest = self._num_passes - _KEEP_HOT_PASSES
        stale = any(self._last_use[slot] < oldest for slot in self._hot)
        if stale or not set(slots) <= set(self._hot):
            lately = {slot for slot in self._hot if self._last_use[slot] >= oldest}
            self._hot = tuple(sorted(lately | set(slots)))


class _MixtureLayer:
    """One linear layer with its share of every resident adapter, and a compact copy of the hot ones."""

    def __init__(self, mixture: LoraMixture, module: nn.Module) -> None:
        self._mixture = mixture
        self._slots: dict[int, LayerWeights] = {}
        self._compact: _Compact | None = None
        self._compact_of: tuple[int, ...] = ()
        self._module = module
        # An instance attribute instead of a hook: nn.Module calls it without its slow path for hooks.
        module.forward = self._in_front_of(module.forward)

    def load(self, slot: int, weights: LayerWeights) -> None:
        """Take one adapter's part, as `_padded` makes it, into an empty slot."""
        self._slots[slot] = weights

    def clear(self, slot: int) -> bool:
        """Forget a slot; True when nothing is left and the module is its own again."""
        self._slots.pop(slot, None)
        if slot in self._compact_of:  # else the copy stays right: who comes and goes unheard costs nobody a rebuild
            self._compact_of = ()
        if not self._slots:
            del self._module.forward
        return not self._slots

    def compact_leaves(self, hot: tuple[int, ...]) -> list[Tensor]:
        """A compact copy of its own of these slots, with gradients; nothing where none has weights here."""
        self._compact, self._compact_of = _gather(self._slots, hot), hot
        if self._compact is None:
            return []
        return [self._compact.down_IR.requires_grad_(), self._compact.up_RO.requires_grad_()]

    def forget_compact(self) -> None:
        """The next pass makes its compact copy anew."""
        self._compact_of = ()

    def _in_front_of(self, base_forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The module's forward with the mixture added while gates are in force."""
        mixture = self._mixture

        def forward(inputs: Tensor) -> Tensor:
            output = base_forward(inputs)
            active = mixture._active
            if active is None:
                return output
            if self._compact_of != active.hot:
                self._compact = _gather(self._slots, active.hot)
                self._compact_of = active.hot
            compact = self._compact
            return output if compact is None else _add_mixture(output, inputs, compact, active)

        return forward


def _add_mixture(output: Tensor, inputs: Tensor, compact: _Compact, active: _Pass) -> Tensor:
    """output + ((inputs A) * weights) B over all active experts at once."""
    inputs_NI = inputs.reshape(-1, inputs.shape[-1])
    weights_NR = active.per_column(compact.ranks)
    narrow_NR = torch.mm(inputs_NI, compact.down_IR)
    if torch.is_grad_enabled():
        return output + torch.mm(narrow_NR * weights_NR, compact.up_RO).view_as(output)
    # The base layer's output is fresh and ours alone: add in place.
    output.view(-1, output.shape[-1]).addmm_(narrow_NR.mul_(weights_NR), compact.up_RO)
    return output


@torch.inference_mode(mode=False)
@torch.no_grad()
def _gather(slots: dict[int, LayerWeights], hot: tuple[int, ...]) -> _Compact | None:
    """The compact copy; None when no hot expert has weights here. Never inference tensors: training reads it too."""
    # Experts without weights in this layer take no columns, yet keep their place in the layout.
    parts = [slots.get(slot) for slot in hot]
    present = [part for part in parts if part is not None]
    if not present:
        return None
    return _Compact(
        down_IR=torch.cat([part.down_RI for part in present]).T,
        up_RO=torch.cat([part.up_OR.T for part in present]),
        ranks=tuple(part.rank if part else 0 for part in parts),
    )


def _padded(weights: LayerWeights, device: torch.device, dtype: torch.dtype | None) -> LayerWeights:
    """The same arithmetic at the next rank bucket, on `device`; the transpose of `up_OR` contiguous.

    The very same object when nothing is left to do.
    """
    down_RI = weights.down_RI.to(device=device, dtype=dtype)
    up_RO = weights.up_OR.to(device=device, dtype=dtype).T
    padding = bucket_of(weights.rank) - weights.rank
    if padding:
        down_RI = nn.functional.pad(down_RI, (0, 0, 0, padding))
        up_RO = nn.functional.pad(up_RO, (0, 0, 0, padding))
    down_RI, up_RO = down_RI.contiguous(), up_RO.contiguous()
    is_same = down_RI is weights.down_RI and up_RO.data_ptr() == weights.up_OR.data_ptr()
    return weights if is_same else LayerWeights(down_RI=down_RI, up_OR=up_RO.T)


def _column_owners(ranks: tuple[int, ...], device: torch.device) -> Tensor:
    """For every rank column the position of its expert among the hot ones."""
    owners_R = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    return owners_R.to(device)
