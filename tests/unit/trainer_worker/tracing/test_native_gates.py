"""What is recorded is what was computed with, whatever rule the family chooses by."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.shared.errors import InvalidRequest
from services.trainer_worker.tracing.native_gates import NativeGate, Selection, find_gates, listening
from tests.unit.shared.modeling import tiny_models
from tests.unit.trainer_worker.tracing.native_models import FAMILIES, tiny_model

TOKEN_IDS = torch.tensor([[5, 9, 33, 7, 61, 12, 90], [17, 4, 4, 88, 23, 51, 2]])
_LAST_STAGE = ("experts.down_proj", "experts.down_proj_bias", "output_linear.weight")
"""Parameters, an expert's at each place, without which it computes nothing."""


@contextmanager
def called_with(module: nn.Module) -> Iterator[list[Any]]:
    """What a module is called with inside, and what it answers: [args, kwargs, output] of its last call."""
    calls: list[Any] = []

    def remember(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[:] = [args, kwargs, output]

    handle = module.register_forward_hook(remember, with_kwargs=True)
    yield calls
    handle.remove()


def block_of(model: PreTrainedModel, gate: NativeGate) -> nn.Module:
    """The layer's feed-forward part: experts, gate and all."""
    name = next(name for name, module in model.named_modules() if module is gate.module)
    return model.get_submodule(name.rpartition(".")[0])


@torch.inference_mode()
def heard_by(model: PreTrainedModel, gate: NativeGate) -> tuple[nn.Module, list[Any], Selection]:
    """The gate's block, how it was called, and what was recorded of it."""
    block = block_of(model, gate)
    with called_with(block) as call, listening([gate]) as heard:
        model(input_ids=TOKEN_IDS, use_cache=False)
    [selection] = heard[gate.layer]
    return block, call, selection


def states_of(output: Any, num_tokens: int) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states.reshape(num_tokens, -1)


def without_expert(block: nn.Module, call: list[Any], expert: int) -> Tensor:
    """What the block makes of the same input when an expert says nothing."""
    parameters = [parameter for name, parameter in block.named_parameters() if name in _LAST_STAGE]
    own = [parameter[expert].clone() for parameter in parameters]
    for parameter in parameters:
        parameter[expert] = 0.0
    output = states_of(block(*call[0], **call[1]), TOKEN_IDS.numel())
    for parameter, values in zip(parameters, own, strict=True):
        parameter[expert] = values
    return output


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_an_expert_was_chosen_where_the_layer_needs_it(self, family: str) -> None:
        model = tiny_model(family)
        gate = find_gates(model)[-1]
        block, call, selection = heard_by(model, gate)
        whole = states_of(call[2], TOKEN_IDS.numel())

        assert selection.experts_NK.shape == (TOKEN_IDS.numel(), FAMILIES[family]["num_experts_per_tok"])
        with torch.inference_mode():
            for expert in range(gate.num_experts):
                needed = (whole - without_expert(block, call, expert)).abs().amax(dim=1) > 1e-7
                assert (selection.experts_NK == expert).any(dim=1).tolist() == needed.tolist()

    def test_gates_are_found_in_every_layer_that_has_one(self, family: str) -> None:
        layers = [gate.layer for gate in find_gates(tiny_model(family))]

        assert layers == ([1, 2] if "first_k_dense_replace" in FAMILIES[family] else [0, 1, 2])
        assert {gate.num_experts for gate in find_gates(tiny_model(family))} == {8}

    def test_the_model_is_as_it_was_afterwards(self, family: str) -> None:
        model = tiny_model(family)
        with torch.inference_mode():
            before = model(input_ids=TOKEN_IDS, use_cache=False).logits
            with listening(find_gates(model)) as heard:
                meanwhile = model(input_ids=TOKEN_IDS, use_cache=False).logits
            model(input_ids=TOKEN_IDS, use_cache=False)

        assert torch.equal(before, meanwhile)
        assert {len(passes) for passes in heard.values()} == {1}


class TestWeights:
    @pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("llama4_text", "jetmoe")])
    def test_are_those_that_experts_outputs_are_summed_with(self, family: str) -> None:
        model = tiny_model(family)
        gate = find_gates(model)[-1]
        block, call, selection = heard_by(model, gate)
        whole = states_of(call[2], TOKEN_IDS.numel())
        inputs_ND = states_of(call[0][0] if call[0] else call[1]["hidden_states"], TOKEN_IDS.numel())

        with torch.inference_mode():
            for expert in range(gate.num_experts):
                alone = torch.full((TOKEN_IDS.numel(), 1), expert)
                output_ND = gate.module(inputs_ND, alone, torch.ones_like(alone, dtype=torch.float32))
                weights_N1 = (selection.weights_NK * (selection.experts_NK == expert)).sum(dim=1, keepdim=True)
                share_ND = whole - without_expert(block, call, expert)
                torch.testing.assert_close(share_ND, weights_N1 * output_ND, atol=1e-5, rtol=1e-4)

    def test_of_llama4_are_what_inputs_are_scaled_by(self) -> None:
        model = tiny_model("llama4_text")
        gate = find_gates(model)[-1]
        with called_with(gate.module) as call:
            _, _, selection = heard_by(model, gate)
        logits_NE = call[2][1]

        torch.testing.assert_close(selection.weights_NK, logits_NE.gather(1, selection.experts_NK).sigmoid())

    def test_of_jetmoe_are_those_that_it_sorts_by_expert(self) -> None:
        model = tiny_model("jetmoe")
        gate = find_gates(model)[-1]
        with called_with(gate.module) as call:
            _, _, selection = heard_by(model, gate)
        order, tokens, gates, sizes, _ = call[2]
        used_NE = torch.zeros(TOKEN_IDS.numel(), gate.num_experts)
        used_NE[tokens, torch.repeat_interleave(torch.arange(gate.num_experts), torch.tensor(sizes))] = gates
        recorded_NE = torch.zeros_like(used_NE).scatter(1, selection.experts_NK, selection.weights_NK)

        assert len(order) == TOKEN_IDS.numel() * 2
        torch.testing.assert_close(recorded_NE, used_NE)

    def test_of_deepseek_v3_are_not_of_the_largest_logits(self) -> None:
        model = tiny_model("deepseek_v3")
        gate = find_gates(model)[-1]
        router: Any = block_of(model, gate).gate
        with called_with(router) as call:
            _, _, selection = heard_by(model, gate)
        largest_NK = call[2][0].topk(3, dim=-1).indices

        assert (selection.experts_NK.sort(dim=-1).values != largest_NK.sort(dim=-1).values).any()


class TestRefusal:
    def test_a_dense_model_has_no_gates(self) -> None:
        with pytest.raises(InvalidRequest, match="cannot be traced"):
            find_gates(tiny_models.tiny_model("llama"))
