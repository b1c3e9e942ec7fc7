"""The mean of a prompt's hidden states, the last or those of a layer: transformers' own, whoever shares the pass."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor

from services.expert_service.pooled_states import PooledStates
from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.modeling.trunk import trunk_states
from tests.unit.expert_service.engine_parts import HandEngine, hand_engine, make_adapters
from tests.unit.shared.modeling.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-5
LENGTHS = (1, 5, 11, 20)


@pytest.fixture(scope="module", name="adapters")
def one_adapter(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    return make_adapters(tmp_path_factory.mktemp("adapters"), ("ada",))


def prompt(length: int) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(length).integers(3, VOCAB_SIZE, length).tolist()


def reference(family: str, token_ids: list[int], adapter: Adapter | None = None) -> Tensor:
    """transformers' own states of a text, averaged, [D]; with an adapter at half its weight."""
    model = tiny_model(family)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if adapter is not None:
            mixture = LoraMixture.attach(model, num_slots=1)
            mixture.load(0, adapter)
            stack.enter_context(mixture.gates(torch.full((len(token_ids), 1), 0.5), range(1)))
        states_1TD: Tensor = model.base_model(torch.tensor([token_ids])).last_hidden_state
    return states_1TD[0].mean(dim=0)


def states_of(engine: HandEngine, name: str) -> Tensor:
    states = engine.finished(name).prompt_states
    assert states is not None
    return torch.tensor(states)


@pytest.mark.parametrize("prefill_step_tokens", [512, 3], ids=["whole", "in pieces"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_texts_gets_transformers_own_states(family: str, prefill_step_tokens: int) -> None:
    engine = hand_engine({}, family=family, prefill_step_tokens=prefill_step_tokens)

    for length in LENGTHS:
        engine.submit(str(length), prompt(length), prompt_states=True, max_new_tokens=1)
    engine.submit("talker", prompt(7), max_new_tokens=8)
    engine.run()

    for length in LENGTHS:
        torch.testing.assert_close(
            states_of(engine, str(length)), reference(family, prompt(length)), atol=TOLERANCE, rtol=TOLERANCE
        )
    assert engine.finished("talker").prompt_states is None


def test_an_experts_states_are_those_of_the_base_with_its_adapter(adapters: dict[str, Adapter]) -> None:
    engine = hand_engine(adapters, prefill_step_tokens=4)

    engine.submit("with", prompt(9), fixed={"ada": 0.5}, prompt_states=True, max_new_tokens=1)
    engine.submit("without", prompt(9), prompt_states=True, max_new_tokens=1)
    engine.run()

    expected = reference("llama", prompt(9), adapters["ada"])
    torch.testing.assert_close(states_of(engine, "with"), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (states_of(engine, "without") - expected).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_share_a_pass_get_the_states_of_the_layers_they_ask_for(family: str) -> None:
    engine = hand_engine({}, family=family, prefill_step_tokens=6)
    layers = (0, 1, None, 1)

    for length, layer in zip(LENGTHS, layers, strict=True):
        engine.submit(str(length), prompt(length), prompt_states=True, states_layer=layer, max_new_tokens=1)
    engine.run()

    for length, layer in zip(LENGTHS, layers, strict=True):
        expected = reference(family, prompt(length))
        if layer is not None:
            expected = trunk_states(tiny_model(family), torch.tensor([prompt(length)]), layer)[0].mean(dim=0)
        torch.testing.assert_close(states_of(engine, str(length)), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_others_get_a_token_in_every_step_while_texts_are_read() -> None:
    engine = hand_engine({}, prefill_step_tokens=2)
    engine.submit("talker", prompt(2), max_new_tokens=20)
    engine.step()

    for length in LENGTHS:
        engine.submit(str(length), prompt(length), prompt_states=True, max_new_tokens=1)
    for _ in range(10):
        before = len(engine.ids("talker"))
        engine.step()
        assert len(engine.ids("talker")) == before + 1


def test_a_text_that_is_read_again_counts_once() -> None:
    pooled = PooledStates(3)
    pooled.add(torch.tensor([[1.0], [100.0]]))
    pooled.restart()

    pooled.add(torch.tensor([[1.0], [2.0]]))
    assert not pooled.is_complete
    pooled.add(torch.tensor([[6.0]]))

    assert pooled.is_complete
    pooled.restart()
    assert pooled.mean() == (3.0,)
