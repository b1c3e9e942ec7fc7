"""The engine at the bound of its KV cache: room, preemption, memory that runs out."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from services.expert_service.kv_budget import layer_bytes
from services.shared.errors import PromptTooLong
from services.shared.modeling.adapter_files import Adapter
from services.shared.schemas.sequences import FinishedEvent
from services.shared.vocabulary import FinishReason
from tests.unit.expert_service.engine_parts import HandEngine, ScriptedScorer, hand_engine, make_adapters
from tests.unit.shared.modeling.tiny_models import VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

NAMES = ("ada", "bob", "cyd")
TOLERANCE = 1e-5


@pytest.fixture(scope="module", name="adapters")
def three_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    return make_adapters(tmp_path_factory.mktemp("adapters"), NAMES)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Failures are made on purpose here; drawing their tracebacks takes seconds each."""
    with capture_logs():
        yield


@pytest.fixture(scope="module", name="position_bytes")
def bytes_of_a_position() -> int:
    return sum(layer_bytes(tiny_model()))


def prompt(length: int, *, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, length).tolist()


def ways(index: int) -> dict[str, Any]:
    """Every kind of request in turn: routed by tokens, routed by trunk states, fixed, sampled, the base alone."""
    return [
        {"scorer": ScriptedScorer(NAMES)},
        {"scorer": ScriptedScorer(NAMES, 1)},
        {"fixed": {"bob": 0.7}},
        {"scorer": ScriptedScorer(NAMES, 2), "do_sample": True, "seed": index, "temperature": 1.2},
        {"do_sample": True, "seed": index},
        {},
    ][index % 6]


def assert_same_answer(one: HandEngine, name: str, other: HandEngine, other_name: str) -> None:
    """The same tokens under the same gates, told once and in order."""
    tokens = one.tokens(name)
    assert [event.index for event in tokens] == list(range(len(tokens)))
    assert one.ids(name) == other.ids(other_name)
    assert one.finished(name).generated_text == other.finished(other_name).generated_text
    for event, expected in zip(tokens, other.tokens(other_name), strict=True):
        assert event.gates == pytest.approx(expected.gates, abs=TOLERANCE)
        assert event.logprob == pytest.approx(expected.logprob, abs=TOLERANCE)


class TestBound:
    def test_preempted_sequences_go_on_as_if_nothing_had_happened(
        self, adapters: dict[str, Adapter], position_bytes: int
    ) -> None:
        prompts = [prompt(4 + 3 * index, seed=index) for index in range(6)]
        alone = hand_engine(adapters, dtype=torch.float64)
        for index, prompt_ids in enumerate(prompts):
            alone.submit(str(index), prompt_ids, max_new_tokens=34, **ways(index))
            alone.run()
        # Room for two or three at their longest, of six that all outgrow the place they are admitted to.
        crowded = hand_engine(
            adapters,
            kv_cache_bytes=2 * 200 * position_bytes,
            first_capacity=4,
            prefill_step_tokens=16,
            dtype=torch.float64,
        )
        for index, prompt_ids in enumerate(prompts):
            crowded.submit(str(index), prompt_ids, max_new_tokens=34, **ways(index))

        for _ in range(400):
            crowded.step()
            status = crowded.engine.status
            assert crowded.runner.cache_bytes <= status.kv_cache_bytes <= status.kv_cache_limit_bytes
            assert status.kv_cached_tokens <= status.kv_capacity_tokens
            if not status.running and not status.waiting:
                break

        assert crowded.engine.status.preemptions > 0
        for index in range(len(prompts)):
            assert_same_answer(crowded, str(index), alone, str(index))

    def test_the_youngest_gives_way_and_the_oldest_is_never_disturbed(self, position_bytes: int) -> None:
        engine = hand_engine({}, kv_cache_bytes=110 * position_bytes, first_capacity=4)
        old = engine.submit("old", prompt(4), max_new_tokens=50)
        young = engine.submit("young", prompt(4, seed=1), max_new_tokens=50)
        steps_of_old = 0
        while old.finish_reason is None:
            before = len(old.generated_ids)
            engine.step()
            steps_of_old += 1
            assert len(old.generated_ids) > before
        engine.run()

        assert engine.engine.status.preemptions > 0
        assert steps_of_old <= 50
        assert len(young.generated_ids) == 50

    def test_waits_for_room_and_is_refused_only_if_it_could_never_fit(self, position_bytes: int) -> None:
        engine = hand_engine({}, kv_cache_bytes=41 * position_bytes, first_capacity=4)
        engine.submit("a", prompt(20), max_new_tokens=20)
        engine.submit("b", prompt(30), max_new_tokens=10)
        with pytest.raises(PromptTooLong, match="kv_cache_bytes"):
            engine.submit("c", prompt(20), max_new_tokens=21)
        engine.step()
        assert (engine.engine.status.running, engine.engine.status.waiting) == (1, 1)
        engine.run()

        assert [len(engine.ids(name)) for name in "ab"] == [20, 10]

    def test_a_sequence_cancelled_while_it_waits_for_room_is_gone_at_once(self, position_bytes: int) -> None:
        engine = hand_engine({}, kv_cache_bytes=41 * position_bytes, first_capacity=4)
        engine.submit("a", prompt(20), max_new_tokens=20)
        waiting = engine.submit("b", prompt(30), max_new_tokens=10)
        engine.step()
        engine.engine.cancel(waiting)
        engine.step()

        assert waiting.finish_reason is FinishReason.CANCELLED
        assert engine.engine.status.waiting == 0

    def test_a_cancelled_sequence_makes_room_before_the_next_step(self, position_bytes: int) -> None:
        engine = hand_engine({}, kv_cache_bytes=41 * position_bytes, first_capacity=4)
        running = engine.submit("a", prompt(20), max_new_tokens=20)
        engine.submit("b", prompt(30), max_new_tokens=10)
        engine.step()
        engine.engine.cancel(running)
        engine.step()

        assert engine.engine.status.running == 1
        assert engine.tokens("b")

    def test_prompt_log_probabilities_survive_a_preemption(self, position_bytes: int) -> None:
        free = hand_engine({})
        free.submit("x", prompt(12), prompt_logprobs=True, max_new_tokens=40)
        free.run()
        engine = hand_engine({}, kv_cache_bytes=100 * position_bytes, first_capacity=4, prefill_step_tokens=8)
        engine.submit("old", prompt(4), max_new_tokens=50)
        engine.submit("x", prompt(12), prompt_logprobs=True, max_new_tokens=40)
        engine.run()

        assert engine.engine.status.preemptions > 0
        expected = free.finished("x").prompt_logprobs
        reported = engine.finished("x").prompt_logprobs
        assert expected is not None
        assert reported is not None
        assert reported[0] is None
        assert list(reported[1:]) == pytest.approx(list(expected[1:]), abs=TOLERANCE)


class TestMemoryRunsOut:
    """A forward pass that is given more rows than memory allows raises what torch raises."""

    def run_out_above(self, engine: HandEngine, num_rows: int) -> Any:
        def fail(_module: Any, args: tuple[Tensor]) -> None:
            if args[0].shape[0] > num_rows:
                raise torch.OutOfMemoryError("out of memory")

        return engine.runner.model.get_input_embeddings().register_forward_pre_hook(fail)

    @pytest.mark.parametrize("num_rows", [1, 2, 3])
    def test_a_pass_that_is_too_large_is_made_in_parts_and_nobody_fails(
        self, adapters: dict[str, Adapter], num_rows: int
    ) -> None:
        free, tight = hand_engine(adapters, dtype=torch.float64), hand_engine(adapters, dtype=torch.float64)
        self.run_out_above(tight, num_rows)
        for engine in (free, tight):
            for index in range(6):
                engine.submit(str(index), prompt(5, seed=index), max_new_tokens=5, **ways(index))
            engine.run()

        for index in range(6):
            assert_same_answer(tight, str(index), free, str(index))

    def test_who_fails_alone_is_tried_again_without_the_others_before_it_ends(self) -> None:
        free = hand_engine({})
        free.submit("big", prompt(30), max_new_tokens=5)
        free.run()
        engine = hand_engine({})
        others = [engine.submit(str(index), prompt(4, seed=index), max_new_tokens=12) for index in range(3)]

        def fail(_module: Any, args: tuple[Tensor]) -> None:
            # 30 tokens fit only when nobody else holds memory.
            if args[0].shape[1] >= 30 and any(other.finish_reason is None for other in others):
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")

        engine.runner.model.get_input_embeddings().register_forward_pre_hook(fail)
        engine.submit("big", prompt(30), max_new_tokens=5)
        engine.run()

        assert engine.ids("big") == free.ids("big")
        assert all(isinstance(engine.last(str(index)), FinishedEvent) for index in range(3))

    def test_a_sequence_that_cannot_move_to_a_larger_place_is_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = hand_engine({}, first_capacity=8)
        free = hand_engine({})
        move = engine.runner.relocate
        tries = []

        def run_out_once(relocation: Any) -> None:
            tries.append(relocation)
            if len(tries) == 1:
                raise torch.OutOfMemoryError("out of memory")
            move(relocation)

        monkeypatch.setattr(engine.runner, "relocate", run_out_once)
        for one in (engine, free):
            one.submit("a", prompt(5), max_new_tokens=30)
            one.submit("b", prompt(4, seed=1), max_new_tokens=30)
            one.run()

        assert engine.engine.status.preemptions == 1
        assert len(tries) > 1
        for name in "ab":
            assert_same_answer(engine, name, free, name)

    def test_who_cannot_be_computed_even_alone_ends_in_words_and_the_engine_goes_on(self) -> None:
        engine = hand_engine({})

        def fail(_module: Any, args: tuple[Tensor]) -> None:
            if args[0].shape[1] >= 30:
                raise torch.OutOfMemoryError("out of memory")

        engine.runner.model.get_input_embeddings().register_forward_pre_hook(fail)
        engine.submit("big", prompt(30), max_new_tokens=5)
        engine.submit("small", prompt(4), max_new_tokens=12)
        engine.run()

        assert engine.error("big").code == "out_of_memory"
        assert len(engine.ids("small")) == 12


class TestOneBadSequence:
    @pytest.mark.parametrize("where", ["text", "prompt log-probabilities"])
    def test_whose_text_cannot_be_made_ends_alone(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        alone = hand_engine({})
        alone.submit("good", prompt(6), prompt_logprobs=True, max_new_tokens=10)
        alone.run()
        engine = hand_engine({})
        bad = engine.submit("bad", prompt(6), prompt_logprobs=True, max_new_tokens=10)
        engine.submit("good", prompt(6), prompt_logprobs=True, max_new_tokens=10)

        def fail(*_arguments: Any) -> None:
            raise RuntimeError("broken")

        if where == "text":
            monkeypatch.setattr(bad.text, "push", fail)
        else:
            monkeypatch.setattr(bad, "prompt_top_logprobs", None)
        engine.run()

        assert engine.error("bad").code == "engine_error"
        assert_same_answer(engine, "good", alone, "good")

    def test_a_router_that_fails_ends_its_sequence_and_moves_no_other_routers_state(
        self, adapters: dict[str, Adapter]
    ) -> None:
        class FailingScorer(ScriptedScorer):
            def advance(self, state: Any, token_ids: Any, trunk_states_TD: Any = None) -> Any:
                if state.total > 2.0:
                    raise RuntimeError("broken router")
                return super().advance(state, token_ids, trunk_states_TD)

        alone = hand_engine(adapters)
        alone.submit("good", prompt(6, seed=3), scorer=ScriptedScorer(NAMES), max_new_tokens=10)
        alone.run()
        engine = hand_engine(adapters)
        engine.submit("bad", [95] * 6, scorer=FailingScorer(NAMES), max_new_tokens=10)
        engine.submit("good", prompt(6, seed=3), scorer=ScriptedScorer(NAMES), max_new_tokens=10)
        engine.run()

        assert engine.error("bad").code == "engine_error"
        assert_same_answer(engine, "good", alone, "good")

    @pytest.mark.parametrize("tap_layer", [1, 2])
    def test_a_pass_repeated_by_halves_moves_trunk_routers_once(
        self, adapters: dict[str, Adapter], tap_layer: int
    ) -> None:
        free, shaken = hand_engine(adapters, dtype=torch.float64), hand_engine(adapters, dtype=torch.float64)
        failures = iter([True, False] * 40)
        # After the tap, so that the pass has already heard the trunk when it fails.
        last_layer = shaken.runner.model.model.layers[2]

        def fail(_module: Any, args: tuple[Tensor], _kwargs: Any) -> None:
            if args[0].shape[0] > 1 and next(failures, False):
                raise RuntimeError("broken")

        last_layer.register_forward_pre_hook(fail, with_kwargs=True)
        for engine in (free, shaken):
            for index in range(3):
                scorer = ScriptedScorer(NAMES, tap_layer)
                engine.submit(str(index), prompt(5, seed=index), scorer=scorer, max_new_tokens=6)
            engine.run()

        for index in range(3):
            assert_same_answer(shaken, str(index), free, str(index))
