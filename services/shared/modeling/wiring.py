"""Where a base model can be adapted: its linear layers by PEFT's own module names, and its decoder stack.

Works on unmodified Hugging Face models: `nn.Linear` (and its quantised subclasses), GPT-2's `Conv1D`, fused
projections. Shape letters: I in features, O out features, L decoder layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from services.shared.errors import InvalidRequest


@dataclass(frozen=True)
class LinearShape:
    """Features in and out of a linear layer, whatever way its weight is stored."""

    num_in: int
    num_out: int


@dataclass(frozen=True)
class BaseShapes:
    """What an adapter file is checked against: the linear layers of a base model and where its layers stand."""

    linears: Mapping[str, LinearShape]
    other_modules: frozenset[str]
    layer_stack: str
    num_layers: int

    @classmethod
    def of(cls, model: nn.Module) -> "BaseShapes":
        """The shapes of `model`; a model built on the `meta` device will do."""
        linears = {name: shape for name, module in model.named_modules() if (shape := linear_shape(module))}
        others = frozenset(name for name, _ in model.named_modules() if name and name not in linears)
        stack_name, stack = decoder_stack(model)
        return cls(linears=linears, other_modules=others, layer_stack=stack_name, num_layers=len(stack))

    def layer_of(self, module_name: str) -> int:
        """The decoder layer a module belongs to; what comes after the stack counts as `num_layers`, before it as 0."""
        inside, _, rest = module_name.partition(f"{self.layer_stack}.")
        if inside == "" and rest:
            return int(rest.split(".", 1)[0])
        return self.num_layers if _is_output_side(module_name) else 0


def linear_shape(module: nn.Module) -> LinearShape | None:
    """Features of a linear layer; None for any other module."""
    if isinstance(module, nn.Linear):
        return LinearShape(module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        return LinearShape(module.weight.shape[0], module.weight.shape[1])
    return None


def decoder_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and modules of the decoder layers: the outermost list as long as the configuration says.

    Raises InvalidRequest when the model has none, as encoder-only and some exotic models do.
    """
    num_layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return name, module
    raise InvalidRequest(
        f"{type(model).__name__} has no stack of {num_layers} decoder layers, so it cannot be served as a base model; "
        "use a decoder-only causal language model such as Llama, Mistral, Qwen, GPT-2, GPT-NeoX or OPT.",
        param="base_model",
    )


def _is_output_side(module_name: str) -> bool:
    """True for heads and output projections, which work on the last layer's states."""
    last = module_name.rsplit(".", 1)[-1]
    return "head" in last or last.endswith("_out") or last == "score"
