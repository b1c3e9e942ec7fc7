"""An answer and its gates depend on the sequence alone: not on neighbours, chunks, places, preemptions or slots."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.expert_service.kv_budget import layer_bytes
from services.expert_service.sequence import Phase
from services.shared.modeling.adapter_files import Adapter
from tests.unit.expert_service.engine_parts import HandEngine, ScriptedScorer, hand_engine, make_adapters
from tests.unit.shared.modeling.tiny_models import VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

NAMES = ("ada", "bob", "cyd")
NUM_REQUESTS = 9
TOLERANCE = 1e-5


@pytest.fixture(scope="module", name="adapters")
def three_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    return make_adapters(tmp_path_factory.mktemp("adapters"), NAMES)


@pytest.fixture(scope="module", name="alone")
def answers_alone(adapters: dict[str, Adapter]) -> HandEngine:
    """Every request by itself, its prompt read in one piece."""
    engine = hand_engine(adapters, dtype=torch.float64)
    for index in range(NUM_REQUESTS):
        engine.submit(str(index), **request(index))
        engine.run()
    return engine


def request(index: int) -> dict[str, Any]:
    """One of many kinds: routed over all or some experts, by tokens or by trunk states, fixed, the base alone."""
    generator = np.random.default_rng(100 + index)
    kinds: list[dict[str, Any]] = [
        {"scorer": ScriptedScorer(NAMES)},
        {"scorer": ScriptedScorer(NAMES, 1)},
        {"scorer": ScriptedScorer(NAMES), "candidates": NAMES[:2]},
        {"fixed": {"ada": 0.5, "cyd": 0.75}},
        {},
    ]
    prompt_ids = generator.integers(3, VOCAB_SIZE, int(generator.integers(1, 30))).tolist()
    return {"prompt_ids": prompt_ids, "max_new_tokens": int(generator.integers(1, 30)), **kinds[index % len(kinds)]}


@pytest.mark.parametrize("seed", range(6))
def test_greedy_tokens_and_gates_are_those_of_the_request_alone(
    seed: int, adapters: dict[str, Adapter], alone: HandEngine
) -> None:
    generator = np.random.default_rng(seed)
    position_bytes = sum(layer_bytes(tiny_model().double()))
    together = hand_engine(
        adapters,
        max_sequences=int(generator.integers(2, 9)),
        prefill_step_tokens=int(generator.integers(1, 40)),
        first_capacity=int(generator.integers(4, 65)),
        kv_cache_bytes=int(generator.integers(90, 260)) * position_bytes,
        num_slots=int(generator.integers(3, 6)),
        dtype=torch.float64,
    )
    passers_by = []
    for index in generator.permutation(NUM_REQUESTS):
        together.submit(str(index), **request(int(index)))
        passers_by.append(together.submit(f"passer-by {index}", **request(int(generator.integers(NUM_REQUESTS)))))
        for _ in range(int(generator.integers(4))):
            together.step()
        if generator.random() < 0.5:
            together.engine.cancel(passers_by[int(generator.integers(len(passers_by)))])
    together.run()

    for index in range(NUM_REQUESTS):
        assert together.ids(str(index)) == alone.ids(str(index))
        for token, expected in zip(together.tokens(str(index)), alone.tokens(str(index)), strict=True):
            assert token.gates == pytest.approx(expected.gates, abs=TOLERANCE)
            assert token.logprob == pytest.approx(expected.logprob, abs=TOLERANCE)


def test_the_requests_above_are_told_apart_by_their_gates(alone: HandEngine) -> None:
    """Otherwise the test before would prove nothing."""
    gates = [tuple(token.gates.items()) for index in range(NUM_REQUESTS) for token in alone.tokens(str(index))]
    assert len(set(gates)) > len(gates) / 4


@pytest.mark.parametrize("prefill_step_tokens", [1, 6, 16])
def test_prompts_are_read_within_the_budget_and_every_decoding_sequence_gets_a_token_in_every_step(
    prefill_step_tokens: int, adapters: dict[str, Adapter]
) -> None:
    engine = hand_engine(adapters, prefill_step_tokens=prefill_step_tokens, max_sequences=6)
    areas: list[int] = []

    def measure(_module: Any, args: tuple[Tensor]) -> None:
        areas.append(args[0].numel())

    engine.runner.model.get_input_embeddings().register_forward_pre_hook(measure)
    arrivals = iter(list(waves()))
    sequences = [engine.submit(name, ids, fixed={"bob": 1.0}, max_new_tokens=25) for name, ids in next(arrivals)]
    num_steps_with_both = 0
    while any(sequence.finish_reason is None for sequence in sequences):
        for name, ids in next(arrivals, ()):
            sequences.append(engine.submit(name, ids, max_new_tokens=8))
        decoding = {s: len(s.generated_ids) for s in sequences if s.phase is Phase.DECODE}
        num_decoding_before = len(decoding)
        areas.clear()
        engine.step()
        assert all(len(sequence.generated_ids) == before + 1 for sequence, before in decoding.items())
        # At most one pass over prompts, and then one over whoever decodes by then.
        assert len(areas) <= 2
        if len(areas) == 2:
            assert areas[0] <= prefill_step_tokens
            num_steps_with_both += num_decoding_before > 0
    assert num_steps_with_both >= 3


def waves() -> Iterator[list[tuple[str, list[int]]]]:
    """A short prompt, then long ones while it is answered."""
    generator = np.random.default_rng(0)
    yield [("short", generator.integers(3, VOCAB_SIZE, 3).tolist())]
    for wave in range(3):
        yield []
        yield [(f"{wave}-{n}", generator.integers(3, VOCAB_SIZE, 40).tolist()) for n in range(2)]
