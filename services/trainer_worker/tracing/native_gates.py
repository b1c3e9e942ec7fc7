"""The gates of a native mixture-of-experts model of transformers, and where each one's choice can be read.

Nearly every family of transformers 5 has in each layer one module that owns all experts and is handed the choice:
`experts(hidden_states, top_k_index, top_k_weights)`. Whatever rule chose, plain top-k or DeepSeek's groups and
biases, these two arguments are what is computed with; so they are read there, and no rule has to be known. A family
that does it otherwise has a line in `_FAMILIES`.

To add a family: find the module whose call sees the choice, write a function like `_llama4` that makes
(experts_NK, weights_NK) of the call, put it into `_FAMILIES` under the module's class, and add a tiny model of it to
`tests/unit/trainer_worker/tracing/native_models.py`; the tests there compare it with what its experts computed.

Shape letters: N tokens of a pass, K experts of a token, E experts of a layer.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from services.shared.errors import InvalidRequest

_INDEX_NAMES: Final = ("top_k_index", "router_indices", "selected_experts")
_WEIGHT_NAMES: Final = ("top_k_weights", "routing_weights")
_LAYER: Final = re.compile(r"(?:^|\.)(\d+)\.")


class Selection(NamedTuple):
    """What a gate chose in one pass, in the order of the family; a weight of 0 is nobody's."""

    experts_NK: Tensor
    weights_NK: Tensor


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    module: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class _Family:
    """How the choice is read off a call of one class of modules; `where` must be in a module's name."""

    read: Callable[[Call], Selection]
    where: str = ""


@dataclass(frozen=True)
class NativeGate:
    """One layer's gate: the module that sees its choice, and how to read it there."""

    layer: int
    num_experts: int
    module: nn.Module
    read: Callable[[Call], Selection]


def find_gates(model: nn.Module) -> list[NativeGate]:
    """In the order of layers. Raises InvalidRequest where there are none, or more than one in a layer."""
    gates: dict[int, NativeGate] = {}
    for name, module in model.named_modules():
        read = _reading(name, module)
        if read is None:
            continue
        layer = _layer_of(name)
        if layer in gates:
            raise _unknown(model, f"layer {layer} has more than one gate")
        gates[layer] = NativeGate(layer, _num_experts(module), module, read)
    if not gates:
        raise _unknown(model, "no layer hands a choice of experts to a module that is known")
    return [gates[layer] for layer in sorted(gates)]


@contextmanager
def listening(gates: list[NativeGate]) -> Iterator[dict[int, list[Selection]]]:
    """What every gate chooses inside, pass by pass, by layer. Tensors stay where they are: nothing is copied."""
    heard: dict[int, list[Selection]] = {gate.layer: [] for gate in gates}
    with ExitStack() as stack:
        for gate in gates:
            stack.callback(_listen(gate, heard[gate.layer]).remove)
        yield heard


def _listen(gate: NativeGate, heard: list[Selection]) -> Any:
    def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        heard.append(gate.read(Call(module, args, kwargs, output)))

    return gate.module.register_forward_hook(hear, with_kwargs=True)


def _reading(name: str, module: nn.Module) -> Callable[[Call], Selection] | None:
    family = _FAMILIES.get(type(module).__name__)
    if family is not None:
        return family.read if family.where in name else None
    parameters = tuple(inspect.signature(type(module).forward).parameters)[2:]
    index = next((place for place in _INDEX_NAMES if place in parameters), None)
    weight = next((place for place in _WEIGHT_NAMES if place in parameters), None)
    if index is None or weight is None:
        return None
    # Positions after `hidden_states`, for calls that name no argument.
    return _Arguments(index, parameters.index(index) + 1, weight, parameters.index(weight) + 1)


@dataclass(frozen=True)
class _Arguments:
    """Reads the choice off the arguments of the experts."""

    index: str
    index_place: int
    weight: str
    weight_place: int

    def __call__(self, call: Call) -> Selection:
        experts_NK = call.kwargs[self.index] if self.index in call.kwargs else call.args[self.index_place]
        weights_NK = call.kwargs[self.weight] if self.weight in call.kwargs else call.args[self.weight_place]
        return Selection(experts_NK, weights_NK)


def _llama4(call: Call) -> Selection:
    """Llama4Router gives a score for each expert, sigmoid of the logit: exactly 0 for those not chosen."""
    scores_NE: Tensor = call.output[0]
    weights_NK, experts_NK = scores_NE.topk(call.module.top_k, dim=-1)
    return Selection(experts_NK, weights_NK)


def _jetmoe(call: Call) -> Selection:
    """JetMoeTopKGating tells its logits last; experts and weights, which it tells sorted by expert, are its rule."""
    logits_NE: Tensor = call.output[4]
    logits_NK, experts_NK = logits_NE.topk(call.module.top_k, dim=1)
    return Selection(experts_NK, torch.softmax(logits_NK, dim=1).to(call.args[0].dtype))


_FAMILIES: Final[Mapping[str, _Family]] = {
    "Llama4Router": _Family(_llama4),
    # Its attention is a mixture too, with a gate of the same class.
    "JetMoeTopKGating": _Family(_jetmoe, where=".mlp."),
}


def _layer_of(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found is not None else 0


def _num_experts(module: Any) -> int:
    # LongCat's experts that compute nothing are chosen like others and are counted in `total_experts` only.
    return int(getattr(module, "total_experts", None) or module.num_experts)


def _unknown(model: nn.Module, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The experts of {type(model).__name__} cannot be traced: {reason}. Mixtral, Qwen-MoE, OLMoE, gpt-oss, "
        "DeepSeek and other mixture-of-experts models of transformers can; a family is added in "
        "services/trainer_worker/tracing/native_gates.py.",
        param="model",
        code="not_traceable",
    )
