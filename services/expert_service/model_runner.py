"""The only file that runs the base model: a forward pass over spans of sequences, with their gates.

Modules are transformers' own, unmodified; keys and values live in a SlotKVCache, within a bound in bytes. Shape
letters: B rows, Q tokens per row, N = B * Q, S active slots, D hidden size, V vocabulary.
"""

import inspect
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.expert_service.batch import AttentionWindows, ForwardBatch, Span, make_batch
from services.expert_service.kv_budget import cache_limit, layer_bytes
from services.expert_service.kv_cache import SlotKVCache
from services.expert_service.kv_places import FIRST_CAPACITY, KVPlaces, Place
from services.expert_service.run_attention import attend_by_run
from services.expert_service.scheduler import Relocation
from services.expert_service.sequence_gate import SequenceGate, Weights, advance_gates
from services.expert_service.weight_layout import lay_out_weights
from services.shared.errors import InvalidRequest
from services.shared.modeling.lora_mixture import Gates, LoraMixture
from services.shared.modeling.wiring import decoder_stack


@dataclass
class SpanGates:
    """The weights of every span of a pass, [count, C] each; None until the trunk has been heard."""

    weights: list[Weights | None]
    advanced: list[tuple[SequenceGate, Any]]
    """States that trunk evidence has moved on; kept only if the pass succeeds, so that it can be repeated."""

    def last(self, index: int) -> Weights:
        """The weights at a span's last token."""
        weights_TC = self.weights[index]
        assert weights_TC is not None
        last_C: Weights = weights_TC[-1]
        return last_C


class ModelRunner:
    """A base model, its mixture and its caches. One thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        mixture: LoraMixture,
        *,
        max_sequences: int,
        max_context: int,
        kv_cache_bytes: int | None = None,
        first_capacity: int = FIRST_CAPACITY,
    ) -> None:
        lay_out_weights(model)
        self.model = model
        self.mixture = mixture
        self.device = model.device
        self.dtype = model.dtype
        stack_name, self._stack = decoder_stack(model)
        self._body = model.get_submodule(stack_name.rpartition(".")[0])
        self._windows = AttentionWindows.of(model.config.get_text_config())
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        bytes_by_layer = layer_bytes(model)
        self.places = KVPlaces(
            bytes_by_layer,
            limit_bytes=cache_limit(
                kv_cache_bytes,
                sum(bytes_by_layer),
                num_positions=max_sequences * (max_context + 1),
                device=self.device,
            ),
            max_context=max_context,
            max_rows=max_sequences,
            first_capacity=first_capacity,
        )
        self._by_run = attend_by_run(model)
        self._cache = SlotKVCache(num_layers=len(bytes_by_layer), places=self.places, by_run=self._by_run)
        self._trunk_caches: dict[int, SlotKVCache] = {}

    @property
    def cache_bytes(self) -> int:
        """Memory of all keys and values, never more than `places.limit_bytes`."""
        return sum(cache.num_bytes for cache in self._caches())

    def gates_before(self, spans: Items[Span]) -> SpanGates:
        """Weights that follow from the tokens alone. Moves router states on: call it once per span."""
        weights: list[Weights | None] = [None] * len(spans)
        ready = [index for index, span in enumerate(spans) if span.sequence.gate.tap_layer is None]
        if all(spans[index].count == 1 for index in ready):
            gates = [spans[index].sequence.gate for index in ready]
            for index, weights_C in zip(
                ready, advance_gates(gates, [spans[i].token_ids[0] for i in ready]), strict=True
            ):
                weights[index] = weights_C[None]
        else:
            for index in ready:
                weights[index] = spans[index].sequence.gate.advance(spans[index].token_ids)
        return SpanGates(weights, [])

    @torch.inference_mode()
    def forward(self, spans: Items[Span], gates: SpanGates, *, all_logits: bool = False) -> Tensor:
        """Logits at each span's last token, [B, V] (all columns, [B, Q, V], if asked); fills in `gates` on the way."""
        self._follow_places()
        batch = self._batch(spans)
        self._hear_second_stream(spans, gates)
        self._cache.view = batch.view
        arguments = {} if all_logits or not self._keeps_logits else {"logits_to_keep": 1}
        with self._mixing(batch, gates), self._listening(spans) as heard:
            logits_BQV: Tensor = self._call(batch, self._cache, **arguments).logits
        for gate, state in gates.advanced:
            gate.state = state
        for layer, states_BQD in heard.items():
            _pool(spans, layer, states_BQD)
        return logits_BQV if all_logits else logits_BQV[:, -1]

    @torch.inference_mode()
    def trunk_states(self, token_ids: Items[int], tap_layer: int) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
        """Hidden states after `tap_layer` layers of the base model alone, [T, D], for a text of its own."""
        token_ids_1T = torch.tensor([list(token_ids)], device=self.device)
        states_1TD = self._until_tap(tap_layer, input_ids=token_ids_1T, use_cache=False)
        return _to_numpy(states_1TD[0])

    @torch.inference_mode()
    def relocate(self, relocation: Relocation) -> None:
        """Move keys and values as the scheduler says."""
        self._follow_places()
        for cache in self._caches():
            cache.move(relocation.source, relocation.target, relocation.num_positions)

    @torch.inference_mode()
    def clear(self, place: Place) -> None:
        """Zero a place whose numbers were not finite."""
        for cache in self._caches():
            cache.clear(place)

    def copy_runs(self) -> None:
        """From now on hand keys and values over in one piece, for models that do not take them run by run."""
        self._by_run = False
        for cache in self._caches():
            cache.by_run = False

    def give_up_memory(self) -> None:
        """Free what nobody needs at present; when memory ran out."""
        self.places.drop_empty()
        self._follow_places()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _follow_places(self) -> None:
        """Slabs that are gone give their memory back, before new ones take theirs."""
        for cache in self._caches():
            cache.follow()

    def _batch(self, spans: Items[Span]) -> ForwardBatch:
        return make_batch(spans, self._windows, dtype=self.dtype, device=self.device)

    def _call(self, batch: ForwardBatch, cache: SlotKVCache, **arguments: Any) -> Any:
        return self.model(
            input_ids=batch.token_ids_BQ,
            position_ids=batch.positions_BQ,
            attention_mask=batch.masks,
            past_key_values=cache,
            use_cache=True,
            **arguments,
        )

    @contextmanager
    def _mixing(self, batch: ForwardBatch, gates: SpanGates) -> Iterator[None]:
        """The pass's gates: those known now, and hooks for those that the pass itself must decide."""
        undecided = {
            tap
            for span, weights_TC in zip(batch.spans, gates.weights, strict=True)
            if weights_TC is None and (tap := span.sequence.gate.tap_layer) is not None
        }
        with ExitStack() as stack:
            known = self._as_tensor(batch, gates)
            stack.enter_context(self.mixture.gates(known.weights_NS, known.slots))
            for tap_layer in sorted(undecided):
                stack.enter_context(self.mixture.gates_at_tap(tap_layer, self._decider(tap_layer, batch, gates)))
            yield

    @contextmanager
    def _listening(self, spans: Items[Span]) -> Iterator[dict[int | None, Tensor]]:
        """The pass's hidden states, [B, Q, D], after as many layers as spans want them of; None: the last."""
        heard: dict[int | None, Tensor] = {}
        with ExitStack() as stack:
            for layer in {span.sequence.request.states_layer for span in spans if span.sequence.wants_states}:
                stack.callback(self._listen(layer, heard).remove)
            yield heard

    def _listen(self, layer: int | None, heard: dict[int | None, Tensor]) -> Any:
        """Have a pass put the states after `layer` layers into `heard`, until the returned handle is removed."""

        def hear_last(_body: nn.Module, _args: Any, output: Any) -> None:
            heard[None] = output.last_hidden_state

        def hear_before(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            heard[layer] = args[0] if args else kwargs["hidden_states"]

        if layer is None:
            return self._body.register_forward_hook(hear_last)
        return self._stack[layer].register_forward_pre_hook(hear_before, with_kwargs=True)

    def _decider(self, tap_layer: int, batch: ForwardBatch, gates: SpanGates) -> Any:
        """What the tap's hook does: hear the trunk, then answer for all rows."""

        def decide(states_BQD: Tensor) -> Gates:
            for index, span in enumerate(batch.spans):
                if gates.weights[index] is None and span.sequence.gate.tap_layer == tap_layer:
                    self._hear(index, span, states_BQD[index, -span.count :], gates)
            return self._as_tensor(batch, gates)

        return decide

    def _hear_second_stream(self, spans: Items[Span], gates: SpanGates) -> None:
        """For sequences whose adapters work below the tap: the trunk without them, with keys and values of its own."""
        needy = [index for index, span in enumerate(spans) if span.sequence.gate.needs_second_stream]
        for tap_layer in sorted({spans[index].sequence.gate.tap_layer or 0 for index in needy}):
            members = [index for index in needy if (spans[index].sequence.gate.tap_layer or 0) == tap_layer]
            cache = self._trunk_cache(tap_layer)
            batch = self._batch([spans[index] for index in members])
            cache.view = batch.view
            states_BQD = self._until_tap(
                tap_layer,
                input_ids=batch.token_ids_BQ,
                position_ids=batch.positions_BQ,
                attention_mask=batch.masks,
                past_key_values=cache,
                use_cache=True,
            )
            for row, index in enumerate(members):
                self._hear(index, spans[index], states_BQD[row, -spans[index].count :], gates)

    def _hear(self, index: int, span: Span, states_TD: Tensor, gates: SpanGates) -> None:
        """Weights of one span from the trunk's states, on a copy of the router's state."""
        gate = span.sequence.gate
        assert gate.scorer is not None
        state = gate.state.copy()
        scores_TC = gate.scorer.advance(state, span.token_ids, _to_numpy(states_TD))
        gates.weights[index] = gate.scorer.weights(scores_TC, gate.candidates)
        gates.advanced.append((gate, state))

    def _as_tensor(self, batch: ForwardBatch, gates: SpanGates) -> Gates:
        """All weights of a pass as one tensor [N, S] over the slots that speak somewhere in it."""
        num_columns = batch.num_columns
        placed: list[tuple[int, int, int, Weights]] = []
        for row, (span, weights_TC) in enumerate(zip(batch.spans, gates.weights, strict=True)):
            if weights_TC is None:
                continue
            gate, end = span.sequence.gate, (row + 1) * num_columns
            for column in _speaking(weights_TC):
                slot = span.sequence.slots[gate.columns[column]]
                placed.append((slot, end - span.count, end, weights_TC[:, column]))
        slots = tuple(sorted({slot for slot, *_ in placed}))
        index_of = {slot: index for index, slot in enumerate(slots)}
        weights_NS = np.zeros((len(batch.spans) * num_columns, len(slots)), dtype=np.float32)
        for slot, start, end, weights_T in placed:
            weights_NS[start:end, index_of[slot]] = weights_T
        return Gates(torch.from_numpy(weights_NS).to(device=self.device, dtype=self.dtype), slots)

    def _until_tap(self, tap_layer: int, **arguments: Any) -> Tensor:
        """The base model's own forward, left as soon as the states before layer `tap_layer` are known."""

        def leave(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _TapReached(args[0] if args else kwargs["hidden_states"])

        handle = self._stack[tap_layer].register_forward_pre_hook(leave, with_kwargs=True)
        try:
            self.model(**arguments)
        except _TapReached as reached:
            return reached.states_BQD
        finally:
            handle.remove()
        raise InvalidRequest(f"The base model's layer {tap_layer} was never called.", param="tap_layer")

    def _trunk_cache(self, tap_layer: int) -> SlotKVCache:
        """Keys and values of the bare trunk; takes memory when first used."""
        if tap_layer not in self._trunk_caches:
            self._trunk_caches[tap_layer] = SlotKVCache(
                num_layers=tap_layer, places=self.places, tap_layer=tap_layer, by_run=self._by_run
            )
        return self._trunk_caches[tap_layer]

    def _caches(self) -> list[SlotKVCache]:
        return [self._cache, *self._trunk_caches.values()]


class _TapReached(Exception):  # control flow, caught where it is made
    """Carries the trunk's states out of a forward pass that need not go on."""

    def __init__(self, states_BQD: Tensor) -> None:
        super().__init__()
        self.states_BQD = states_BQD


def _pool(spans: Items[Span], layer: int | None, states_BQD: Tensor) -> None:
    """The states of all spans that want this layer's, which stand at the end of their rows, into their means."""
    for span, states_QD in zip(spans, states_BQD, strict=True):
        sequence = span.sequence
        if sequence.wants_states and sequence.pooled is not None and sequence.request.states_layer == layer:
            sequence.pooled.add(states_QD[-span.count :])


def _speaking(weights_TC: Weights) -> Iterable[int]:
    """Columns of the experts with a weight at any of these tokens."""
    if len(weights_TC) == 1:  # a decoding sequence: a list is quicker than two small numpy calls
        return [column for column, weight in enumerate(weights_TC[0, :-1].tolist()) if weight]
    return map(int, np.flatnonzero(weights_TC[:, :-1].any(axis=0)))


def _to_numpy(states: Tensor) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    array: np.ndarray[Any, np.dtype[np.floating[Any]]] = states.float().cpu().numpy()
    return array
