"""The mixture against a slow, obvious twin, against PEFT, and under autograd."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import Gates, LoraMixture
from tests.unit.shared.modeling.tiny_models import (
    FAMILIES,
    VOCAB_SIZE,
    random_adapter,
    save_random_adapter,
    tiny_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-5
NUM_SEQUENCES, NUM_TOKENS = 2, 7


def reference_logits(
    model: PreTrainedModel, token_ids_BT: Tensor, adapters: Sequence[Adapter], weights_NS: Tensor
) -> Tensor:
    """The mixture's definition, one adapter after the other: y = W x + sum_e w_te * B_e (A_e x)."""
    handles = []
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    for name in {name for adapter in adapters for name in adapter.layers}:

        def add_one_by_one(_module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> Tensor:
            for column, adapter in enumerate(adapters):
                if name in adapter.layers:
                    part = adapter.layers[name]
                    weight_BT1 = weights_NS[:, column].view(*inputs[0].shape[:-1], 1)
                    output = output + weight_BT1 * (inputs[0] @ part.down_RI.T @ part.up_OR.T)
            return output

        handles.append(modules[name].register_forward_hook(add_one_by_one))
    with torch.no_grad():
        logits_BTV = model(token_ids_BT).logits
    for handle in handles:
        handle.remove()
    return logits_BTV


@pytest.fixture(name="token_ids_BT")
def token_ids() -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (NUM_SEQUENCES, NUM_TOKENS), generator=torch.Generator().manual_seed(5))


def random_weights(num_slots: int, *, seed: int = 3) -> Tensor:
    """Sparse rows, as a gate makes them: many zeros, each row summing to less than one (the base has the rest)."""
    generator = torch.Generator().manual_seed(seed)
    weights_NS = torch.rand(NUM_SEQUENCES * NUM_TOKENS, num_slots, generator=generator)
    weights_NS = weights_NS * (weights_NS > 0.5)
    return weights_NS / weights_NS.sum(1, keepdim=True).clamp(min=1.0)


class TestLoraMixture:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_equals_adapters_applied_one_by_one(self, family: str, token_ids_BT: Tensor, tmp_path: Path) -> None:
        model = tiny_model(family)
        ranks = (3, 8, 5)
        adapters = [
            random_adapter(tmp_path / str(seed), model, family, seed=seed, rank=rank) for seed, rank in enumerate(ranks)
        ]
        weights_NS = random_weights(3)
        expected_BTV = reference_logits(model, token_ids_BT, adapters, weights_NS)

        mixture = LoraMixture.attach(model, num_slots=4)
        for slot, adapter in zip((2, 0, 3), adapters, strict=True):
            mixture.load(slot, adapter)
        with torch.no_grad(), mixture.gates(weights_NS, (2, 0, 3)):
            mixed_BTV = model(token_ids_BT).logits

        assert (mixed_BTV - expected_BTV).abs().max() <= TOLERANCE
        with torch.no_grad():
            assert (mixed_BTV - model(token_ids_BT).logits).abs().max() > 0.05

    @pytest.mark.parametrize("family", FAMILIES)
    def test_one_expert_alone_is_that_peft_adapter(self, family: str, token_ids_BT: Tensor, tmp_path: Path) -> None:
        folder = save_random_adapter(tmp_path / "one", family, seed=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft_model = PeftModel.from_pretrained(tiny_model(family), folder)
        with torch.no_grad():
            expected_BTV = peft_model(token_ids_BT).logits
        model = tiny_model(family)

        mixture = LoraMixture.attach(model, num_slots=1)
        mixture.load(0, random_adapter(tmp_path / "same", model, family, seed=1))
        with torch.no_grad(), mixture.gates(torch.ones(token_ids_BT.numel(), 1), (0,)):
            mixed_BTV = model(token_ids_BT).logits

        assert (mixed_BTV - expected_BTV).abs().max() <= TOLERANCE

    def test_is_the_base_model_outside_gates_and_when_nobody_speaks(self, token_ids_BT: Tensor, tmp_path: Path) -> None:
        model = tiny_model()
        expected_BTV = model(token_ids_BT).logits
        mixture = LoraMixture.attach(model, num_slots=1)
        mixture.load(0, random_adapter(tmp_path, model, seed=1))

        with mixture.gates(torch.zeros(token_ids_BT.numel(), 0), ()):
            silent_BTV = model(token_ids_BT).logits

        assert torch.equal(silent_BTV, expected_BTV)
        assert torch.equal(model(token_ids_BT).logits, expected_BTV)

    def test_follows_slots_that_are_replaced_and_cleared(self, token_ids_BT: Tensor, tmp_path: Path) -> None:
        model = tiny_model()
        first, second = (random_adapter(tmp_path / str(seed), model, seed=seed) for seed in (1, 2))
        ones_NS = torch.ones(token_ids_BT.numel(), 1)
        expected_BTV = reference_logits(model, token_ids_BT, [second], ones_NS)
        mixture = LoraMixture.attach(model, num_slots=1)

        mixture.load(0, first)
        with torch.no_grad(), mixture.gates(ones_NS, (0,)):
            model(token_ids_BT)
        mixture.load(0, second)
        with torch.no_grad(), mixture.gates(ones_NS, (0,)):
            replaced_BTV = model(token_ids_BT).logits
        mixture.clear(0)

        assert (replaced_BTV - expected_BTV).abs().max() <= TOLERANCE
        assert not any("forward" in vars(module) for module in model.modules())
        with pytest.raises(ValueError, match="empty"), mixture.gates(ones_NS, (0,)):
            pass

    def test_is_exact_while_the_set_of_speakers_changes(self, token_ids_BT: Tensor, tmp_path: Path) -> None:
        model = tiny_model()
        adapters = [random_adapter(tmp_path / str(seed), model, seed=seed, rank=seed + 1) for seed in range(4)]
        steps = [(0,), (1,), (1, 3), (3, 0), (2,), *([(1,)] * 40), (0, 1, 2, 3)]
        expected = []
        for step, slots in enumerate(steps):
            chosen = [adapters[slot] for slot in slots]
            expected.append(reference_logits(model, token_ids_BT, chosen, random_weights(len(slots), seed=step)))
        mixture = LoraMixture.attach(model, num_slots=4)
        for slot, adapter in enumerate(adapters):
            mixture.load(slot, adapter)

        for step, slots in enumerate(steps):
            with torch.no_grad(), mixture.gates(random_weights(len(slots), seed=step), slots):
                assert (model(token_ids_BT).logits - expected[step]).abs().max() <= TOLERANCE

    def test_carries_gradients_to_the_weights_even_after_inference(self, token_ids_BT: Tensor, tmp_path: Path) -> None:
        model = tiny_model()
        adapters = [random_adapter(tmp_path / str(seed), model, seed=seed) for seed in (1, 2)]
        weights_NS = random_weights(2).requires_grad_()

        mixture = LoraMixture.attach(model, num_slots=2)
        for slot, adapter in enumerate(adapters):
            mixture.load(slot, adapter)
        with torch.inference_mode(), mixture.gates(weights_NS.detach(), (0, 1)):
            model(token_ids_BT)
        with mixture.gates(weights_NS, (0, 1)):
            model(token_ids_BT).logits.square().mean().backward()

        assert weights_NS.grad is not None
        step = 1e-3
        for row, column in ((0, 0), (9, 1)):
            losses = []
            for sign in (1, -1):
                moved_NS = weights_NS.detach().clone()
                moved_NS[row, column] += sign * step
                losses.append(reference_logits(model, token_ids_BT, adapters, moved_NS).square().mean())
            slope = (losses[0] - losses[1]) / (2 * step)
            assert weights_NS.grad[row, column] == pytest.approx(slope.item(), rel=0.02, abs=1e-4)

    @pytest.mark.parametrize("tap_layer", [0, 1, 2])
    def test_decides_at_the_tap_from_the_states_there(
        self, tap_layer: int, token_ids_BT: Tensor, tmp_path: Path
    ) -> None:
        model = tiny_model()
        above = list(range(tap_layer, 3))
        adapter = random_adapter(tmp_path, model, seed=1, layers_to_transform=above)
        with torch.no_grad():
            states_BTD = model(token_ids_BT, output_hidden_states=True).hidden_states[tap_layer]
        weights_N1 = states_BTD.sum(-1).sigmoid().view(-1, 1)
        expected_BTV = reference_logits(model, token_ids_BT, [adapter], weights_N1)
        mixture = LoraMixture.attach(model, num_slots=1)
        mixture.load(0, adapter)

        def decide(seen_BTD: Tensor) -> Gates:
            return Gates(seen_BTD.sum(-1).sigmoid().view(-1, 1), (0,))

        with torch.no_grad(), mixture.gates_at_tap(tap_layer, decide):
            mixed_BTV = model(token_ids_BT).logits

        assert (mixed_BTV - expected_BTV).abs().max() <= TOLERANCE

    def test_trains_a_copy_of_its_experts_and_forgets_it(self, token_ids_BT: Tensor, tmp_path: Path) -> None:
        model = tiny_model("llama")
        adapters = [random_adapter(tmp_path / str(seed), model, seed=seed) for seed in (0, 1)]
        mixture = LoraMixture.attach(model, num_slots=2)
        for slot, adapter in enumerate(adapters):
            mixture.load(slot, adapter)
        weights_NS = random_weights(2)

        def loss() -> Tensor:
            with mixture.gates(weights_NS, (0, 1)):
                logits_BTV: Tensor = model(token_ids_BT).logits
            return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), token_ids_BT.flatten())

        before = loss().item()
        with mixture.trainable((0, 1)) as leaves:
            optimizer = torch.optim.Adam(leaves, lr=1e-2)
            for _ in range(5):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            trained = loss().item()

        assert trained < before - 1e-3
        assert loss().item() == before
