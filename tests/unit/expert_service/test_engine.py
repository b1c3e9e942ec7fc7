"""The engine, step by step, over a tiny random model."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from services.expert_service.answers import Delivery
from services.expert_service.self_test import check_architecture
from services.shared.errors import InvalidRequest, Overloaded, Unavailable
from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.schemas.sequences import ErrorEvent
from services.shared.vocabulary import BASE, FinishReason
from tests.unit.expert_service.engine_parts import ScriptedScorer, hand_engine, make_adapters
from tests.unit.shared.modeling.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

NAMES = ("ada", "bob", "cyd")
TOLERANCE = 1e-5


@pytest.fixture(scope="module", name="adapters")
def three_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    return make_adapters(tmp_path_factory.mktemp("adapters"), NAMES)


def prompt(length: int, *, seed: int = 0) -> list[int]:
    """Random token ids."""
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, length).tolist()


def recomputed_logits(
    adapters: Mapping[str, Adapter], token_ids: list[int], weights_TC: np.ndarray[Any, Any], names: tuple[str, ...]
) -> Tensor:
    """Logits of a whole text without any cache, under the given weights: [T, V]."""
    model = tiny_model()
    mixture = LoraMixture.attach(model, num_slots=len(names))
    for slot, name in enumerate(names):
        mixture.load(slot, adapters[name])
    weights_NS = torch.from_numpy(weights_TC[:, : len(names)].astype(np.float32))
    with torch.no_grad(), mixture.gates(weights_NS, range(len(names))):
        logits_TV: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits_TV


class TestCachedDecoding:
    @pytest.mark.parametrize("prefill_step_tokens", [512, 3])
    def test_equals_a_full_recompute_gates_included(
        self, adapters: dict[str, Adapter], prefill_step_tokens: int
    ) -> None:
        engine = hand_engine(adapters, prefill_step_tokens=prefill_step_tokens)
        scorer = ScriptedScorer(NAMES)
        prompt_ids = prompt(11)

        engine.submit("a", prompt_ids, scorer=scorer, max_new_tokens=12)
        engine.run()

        token_ids = prompt_ids + engine.ids("a")
        weights_TC = scorer.weights(scorer.advance(scorer.start(), token_ids))
        logprobs_TV = recomputed_logits(adapters, token_ids, weights_TC, NAMES).log_softmax(dim=-1)
        for event in engine.tokens("a"):
            before = len(prompt_ids) + event.index - 1
            assert event.id == logprobs_TV[before].argmax()
            assert event.logprob == pytest.approx(logprobs_TV[before, event.id].item(), abs=TOLERANCE)
            expected = {n: w for n, w in zip(scorer.columns, weights_TC[before].tolist(), strict=True) if w}
            assert event.gates == pytest.approx(expected, abs=1e-6)
            assert sum(event.gates.values()) == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_is_the_models_own_generate_for_the_base_alone(self, family: str) -> None:
        engine = hand_engine({}, family=family, prefill_step_tokens=7)
        prompt_ids = prompt(20)

        engine.submit("a", prompt_ids, max_new_tokens=16)
        engine.submit("b", prompt(5, seed=1), max_new_tokens=16)
        engine.run()

        expected = tiny_model(family).generate(
            torch.tensor([prompt_ids]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert engine.ids("a") == expected[0, len(prompt_ids) :].tolist()

    def test_reports_log_probabilities_of_the_prompt(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, prefill_step_tokens=4)
        prompt_ids = prompt(9)

        engine.submit("a", prompt_ids, fixed={"ada": 0.5}, prompt_logprobs=True, num_top_logprobs=3, max_new_tokens=1)
        engine.submit("b", prompt(6), max_new_tokens=1)
        engine.run()

        logprobs_TV = recomputed_logits(adapters, prompt_ids, np.full((9, 2), 0.5), ("ada",)).log_softmax(dim=-1)
        expected = [logprobs_TV[t, prompt_ids[t + 1]].item() for t in range(8)]
        reported = engine.finished("a").prompt_logprobs
        assert reported is not None
        assert reported[0] is None
        assert list(reported[1:]) == pytest.approx(expected, abs=TOLERANCE)
        top = engine.finished("a").prompt_top_logprobs
        assert top is not None
        assert [tuple(token_id for token_id, _ in best) for best in top] == [
            (), *map(tuple, logprobs_TV[:8].topk(3).indices.tolist())
        ]  # fmt: skip
        assert [token_id for token_id, _ in engine.tokens("a")[0].top_logprobs] == logprobs_TV[8].topk(
            3
        ).indices.tolist()
        assert engine.finished("b").prompt_logprobs is None
        assert engine.tokens("b")[0].top_logprobs == ()


class TestTrunkEvidence:
    @pytest.mark.parametrize("tap_layer", [1, 2])
    @pytest.mark.parametrize("lowest", [0, 2], ids=["adapters below the tap", "adapters above the tap"])
    @pytest.mark.parametrize("prefill_step_tokens", [512, 4])
    def test_gates_follow_the_bare_trunk_and_no_weight_is_dropped(
        self, tap_layer: int, lowest: int, prefill_step_tokens: int, tmp_path: Path
    ) -> None:
        adapters = make_adapters(tmp_path, NAMES, layers_to_transform=list(range(lowest, 3)))
        scorer = ScriptedScorer(NAMES, tap_layer)
        engine = hand_engine(adapters, prefill_step_tokens=prefill_step_tokens)
        prompt_ids = prompt(9)

        engine.submit("a", prompt_ids, scorer=scorer, max_new_tokens=6)
        engine.submit("b", prompt(4), scorer=ScriptedScorer(NAMES), max_new_tokens=9)
        engine.submit("c", prompt(5, seed=2), fixed={"bob": 1.0}, max_new_tokens=3)
        engine.run()

        token_ids = prompt_ids + engine.ids("a")
        with torch.no_grad():
            states = tiny_model()(torch.tensor([token_ids]), output_hidden_states=True).hidden_states
        weights_TC = scorer.weights(scorer.advance(scorer.start(), token_ids, states[tap_layer][0].numpy()))
        assert (weights_TC[:, :-1] > 0).any()
        logprobs_TV = recomputed_logits(adapters, token_ids, weights_TC, NAMES).log_softmax(dim=-1)
        for event in engine.tokens("a"):
            before = len(prompt_ids) + event.index - 1
            assert event.logprob == pytest.approx(logprobs_TV[before, event.id].item(), abs=TOLERANCE)
            assert event.id == logprobs_TV[before].argmax()


class TestNeighbours:
    def test_do_not_change_a_greedy_answer(self, adapters: dict[str, Adapter]) -> None:
        def options(index: int) -> dict[str, Any]:
            kinds: list[dict[str, Any]] = [
                {"scorer": ScriptedScorer(NAMES)},
                {"fixed": {NAMES[index % 3]: 1.0}},
                {},
                {"scorer": ScriptedScorer(NAMES), "candidates": NAMES[:2]},
                {"fixed": {"ada": 0.3, "cyd": 0.6}},
            ]
            return {"max_new_tokens": 4 + 3 * index % 11, **kinds[index % 5]}

        prompts = [prompt(3 + 5 * index % 17, seed=index) for index in range(10)]
        together = hand_engine(adapters, prefill_step_tokens=16)
        for index, prompt_ids in enumerate(prompts):
            together.submit(str(index), prompt_ids, **options(index))
            together.step()
        together.run()

        for index, prompt_ids in enumerate(prompts):
            alone = hand_engine(adapters)
            alone.submit("x", prompt_ids, **options(index))
            alone.run()
            assert alone.ids("x") == together.ids(str(index))
            for one, other in zip(alone.tokens("x"), together.tokens(str(index)), strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
                assert one.gates == other.gates

    def test_do_not_change_a_sampled_answer_with_a_seed(self, adapters: dict[str, Adapter]) -> None:
        sampled = {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.95, "seed": 7, "max_new_tokens": 10}
        alone = hand_engine(adapters)
        alone.submit("x", prompt(6), fixed={"bob": 1.0}, **sampled)
        alone.run()
        together = hand_engine(adapters)
        for index in range(4):
            together.submit(str(index), prompt(3 + index, seed=index), do_sample=True, seed=index, max_new_tokens=12)
        together.submit("x", prompt(6), fixed={"bob": 1.0}, **sampled)
        together.run()

        assert together.ids("x") == alone.ids("x")
        assert alone.finished("x").seed == 7
        assert alone.finished("x").seed == together.finished("x").seed

    def test_another_seed_gives_another_answer_and_no_seed_a_fresh_one(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters)
        for name, seed in (("a", 1), ("b", 2), ("c", None)):
            engine.submit(name, prompt(6), do_sample=True, temperature=2.0, seed=seed, max_new_tokens=12)
        engine.run()

        assert engine.ids("a") != engine.ids("b")
        assert engine.finished("c").seed is not None


class TestContinuousBatching:
    def test_a_long_prompt_does_not_stall_decoding(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, prefill_step_tokens=5)
        engine.submit("short", prompt(3), max_new_tokens=30)
        engine.step()
        engine.submit("long", prompt(40), max_new_tokens=2)

        for _ in range(6):
            before = len(engine.tokens("short"))
            engine.step()
            assert len(engine.tokens("short")) == before + 1
        assert not engine.tokens("long")
        engine.run()
        assert len(engine.ids("long")) == 2

    def test_sequences_join_and_leave_and_all_get_their_tokens(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, max_sequences=3)
        lengths = [1, 9, 4, 2, 7, 3, 11, 5]
        for index, length in enumerate(lengths):
            engine.submit(str(index), prompt(4, seed=index), max_new_tokens=length)
        assert engine.engine.status.running == 0
        engine.step()
        assert engine.engine.status.running <= 3
        engine.run()

        assert [len(engine.ids(str(index))) for index in range(len(lengths))] == lengths
        assert all(engine.finished(str(i)).finish_reason is FinishReason.LENGTH for i in range(len(lengths)))

    def test_refuses_what_exceeds_the_queue_and_takes_again_later(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, max_sequences=2, max_waiting=1)
        for name in "abc":
            engine.submit(name, prompt(3))
        with pytest.raises(Overloaded) as refused:
            engine.submit("d", prompt(3))
        assert refused.value.retry_after_s
        engine.run()
        engine.submit("e", prompt(3))
        engine.run()
        assert len(engine.ids("e")) == 8

    def test_a_cancelled_sequence_frees_its_place_at_the_next_step(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, max_sequences=2, num_slots=2)
        first = engine.submit("a", prompt(3), fixed={"ada": 1.0}, max_new_tokens=50)
        engine.submit("b", prompt(3), fixed={"bob": 1.0}, max_new_tokens=50)
        waiting = engine.submit("c", prompt(3), fixed={"cyd": 1.0}, max_new_tokens=3)
        gone = engine.submit("d", prompt(3))
        engine.step()
        assert engine.engine.status.waiting == 2

        engine.engine.cancel(first)
        engine.engine.cancel(gone)
        engine.step()

        assert first.finish_reason is FinishReason.CANCELLED
        assert gone.finish_reason is FinishReason.CANCELLED
        assert waiting.slots
        assert engine.engine.status.waiting == 0
        assert len(engine.engine.status.pinned) == 2

    def test_draining_refuses_newcomers_and_ends_the_rest_in_words(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, max_sequences=1)
        engine.submit("a", prompt(3), max_new_tokens=50)
        engine.submit("b", prompt(3))
        engine.step()

        engine.engine.drain(grace_s=0.0)
        with pytest.raises(Unavailable):
            engine.submit("c", prompt(3))
        engine.step()

        assert engine.error("a").code == "shutting_down"
        assert engine.error("b").code == "shutting_down"
        assert engine.engine.status.running == 0


class TestSlots:
    def test_one_slot_serves_every_expert_in_turn(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, num_slots=1, max_overtaken=0)
        for index, name in enumerate(["ada", "ada", "bob", "ada", "cyd", "ada", "ada"]):
            engine.submit(str(index), prompt(3), fixed={name: 1.0}, max_new_tokens=4)
        engine.run()

        assert all(len(engine.ids(str(index))) == 4 for index in range(7))
        assert engine.ids("0") == engine.ids("3")
        assert engine.ids("0") != engine.ids("2")
        assert engine.cache.counts.evictions >= 4

    def test_a_byte_budget_holds_like_the_slots(self, adapters: dict[str, Adapter]) -> None:
        size = adapters["ada"].num_bytes
        engine = hand_engine(adapters, slot_bytes=2 * size)
        for index in range(6):
            engine.submit(str(index), prompt(3), fixed={NAMES[index % 3]: 1.0}, max_new_tokens=5)
            engine.step()
            assert engine.cache.num_bytes <= 2 * size
        engine.run()
        assert all(len(engine.ids(str(index))) == 5 for index in range(6))

    def test_residents_are_found_again(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters)
        for name in ("a", "b"):
            engine.submit(name, prompt(3), fixed={"ada": 1.0}, max_new_tokens=2)
            engine.run()
        assert (engine.cache.counts.hits, engine.cache.counts.misses) == (1, 1)
        assert engine.engine.status.pinned == ()
        assert len(engine.engine.status.resident) == 1


class TestEnds:
    def test_a_stop_string_over_several_tokens_ends_and_is_cut(self, adapters: dict[str, Adapter]) -> None:
        free = hand_engine(adapters)
        free.submit("a", prompt(5), fixed={"ada": 1.0}, max_new_tokens=12)
        free.run()
        text = free.finished("a").generated_text
        stop = text[4:7]

        engine = hand_engine(adapters)
        engine.submit("a", prompt(5), fixed={"ada": 1.0}, max_new_tokens=12, stop=("never", stop))
        engine.run()

        finished = engine.finished("a")
        assert finished.finish_reason is FinishReason.STOP_SEQUENCE
        assert finished.generated_text == text[: text.index(stop)]
        assert "".join(event.text for event in engine.tokens("a")) == finished.generated_text
        assert finished.num_generated_tokens == text.index(stop) + 3
        assert engine.ids("a") == free.ids("a")[: finished.num_generated_tokens]

    def test_text_that_might_stop_is_held_back_and_given_out_when_it_does_not(
        self, adapters: dict[str, Adapter]
    ) -> None:
        free = hand_engine(adapters)
        free.submit("a", prompt(5), max_new_tokens=6)
        free.run()
        text = free.finished("a").generated_text
        engine = hand_engine(adapters)
        engine.submit("a", prompt(5), max_new_tokens=6, stop=(text[2:4] + "~~",))

        for _ in range(3):  # the first step reads the prompt and decodes twice
            engine.step()
        assert "".join(event.text for event in engine.tokens("a")) == text[:2]
        engine.run()

        assert engine.finished("a").generated_text == text
        assert engine.ids("a") == free.ids("a")

    def test_the_end_token_ends_and_is_no_text(self) -> None:
        engine = hand_engine({})
        head = engine.runner.model.get_output_embeddings()
        hook = head.register_forward_hook(lambda _m, _i, logits: logits.index_fill(-1, torch.tensor(2), 1e4))

        engine.submit("a", prompt(5), ignore_eos_token=False)
        engine.submit("b", prompt(5), ignore_eos_token=True, max_new_tokens=3)
        engine.run()
        hook.remove()

        assert engine.finished("a").finish_reason is FinishReason.EOS_TOKEN
        assert engine.finished("a").generated_text == ""
        assert [event.special for event in engine.tokens("a")] == [True]
        assert engine.ids("b") == [2, 2, 2]

    def test_greedy_with_a_repetition_penalty_is_transformers(self) -> None:
        engine = hand_engine({})
        engine.submit("a", prompt(6), repetition_penalty=1.8, max_new_tokens=14)
        engine.run()
        expected = tiny_model().generate(
            torch.tensor([prompt(6)]),
            max_new_tokens=14,
            do_sample=False,
            repetition_penalty=1.8,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert engine.ids("a") == expected[0, 6:].tolist()


class TestFaults:
    def test_a_pass_that_fails_for_one_ends_that_one(self, adapters: dict[str, Adapter]) -> None:
        alone = hand_engine(adapters)
        alone.submit("good", prompt(4, seed=2), scorer=ScriptedScorer(NAMES), max_new_tokens=9)
        alone.run()
        engine = hand_engine(adapters)
        engine.submit("bad", prompt(4), max_new_tokens=20)
        engine.submit("good", prompt(4, seed=2), scorer=ScriptedScorer(NAMES), max_new_tokens=9)
        for _ in range(3):
            engine.step()
        poisoned = engine.ids("bad")[-1]
        embedding = engine.runner.model.get_input_embeddings()

        def fail_for_bad(_module: Any, args: tuple[Tensor]) -> None:
            if args[0].shape[1] == 1 and (args[0] == poisoned).any():
                raise RuntimeError("broken")

        hook = embedding.register_forward_pre_hook(fail_for_bad)
        with capture_logs() as logs:
            engine.step()
        hook.remove()
        engine.run()

        assert engine.error("bad").code == "engine_error"
        assert any(line["log_level"] == "error" for line in logs)
        assert engine.ids("good") == alone.ids("good")
        assert [event.gates for event in engine.tokens("good")] == [event.gates for event in alone.tokens("good")]

    def test_numbers_that_are_not_finite_end_the_sequence_and_spare_the_next(
        self, adapters: dict[str, Adapter]
    ) -> None:
        reference = hand_engine(adapters)
        reference.submit("x", prompt(30), max_new_tokens=3)
        reference.run()
        engine = hand_engine(adapters, max_sequences=1)
        embedding = engine.runner.model.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda _m, _i, states: states * float("nan"))
        engine.submit("bad", prompt(40))
        engine.run()
        hook.remove()

        engine.submit("x", prompt(30), max_new_tokens=3)
        engine.run()

        assert engine.error("bad").code == "not_finite"
        assert engine.ids("x") == reference.ids("x")

    def test_base_sequences_name_the_base(self) -> None:
        engine = hand_engine({})
        engine.submit("a", prompt(3), max_new_tokens=1)
        engine.run()
        assert engine.tokens("a")[0].gates == {BASE: 1.0}

    def test_a_fixed_plan_reports_its_weights_and_what_is_left_to_the_base(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters)
        engine.submit("a", prompt(3), fixed={"ada": 0.25, "bob": 0.5}, max_new_tokens=1)
        engine.run()
        assert engine.tokens("a")[0].gates == pytest.approx({"ada": 0.25, "bob": 0.5, BASE: 0.25})


class TestSelfTest:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_accepts_ordinary_decoders(self, family: str) -> None:
        engine = hand_engine({}, family=family)
        check_architecture(engine.runner, engine.tokenizer)

    def test_refuses_a_model_whose_cached_answer_differs(self) -> None:
        engine = hand_engine({})
        layer = engine.runner.model.model.layers[1]
        # A layer that looks at how many tokens it is given at once, as recurrent ones may.
        layer.register_forward_hook(lambda _m, args, states: states * args[0].shape[1])
        with pytest.raises(InvalidRequest, match="LlamaForCausalLM cannot be served"):
            check_architecture(engine.runner, engine.tokenizer)


class TestThread:
    def test_serves_the_queue_to_its_end_and_runs_errands_between(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, max_sequences=1)
        sequences = [engine.submit(str(index), prompt(3), max_new_tokens=3) for index in range(4)]

        engine.engine.start()
        errand = engine.engine.run(lambda: engine.runner.trunk_states(prompt(5), 1))
        states_TD = errand.result(timeout=60)
        deadline = time.monotonic() + 60
        while any(sequence.finish_reason is None for sequence in sequences) and time.monotonic() < deadline:
            time.sleep(0.01)
        engine.engine.stop()

        assert [sequence.finish_reason for sequence in sequences] == [FinishReason.LENGTH] * 4
        with torch.no_grad():
            expected = tiny_model()(torch.tensor([prompt(5)]), output_hidden_states=True).hidden_states[1][0]
        assert np.abs(states_TD - expected.numpy()).max() <= TOLERANCE
        with pytest.raises(Unavailable):
            engine.submit("late", prompt(3))

    def test_stopping_ends_what_still_runs_in_words(self, adapters: dict[str, Adapter]) -> None:
        told: list[Delivery] = []
        engine = hand_engine(adapters, max_sequences=1, deliver=told.extend)
        engine.submit("a", prompt(3), max_new_tokens=60)
        engine.submit("b", prompt(3), max_new_tokens=60)
        engine.engine.stop()
        engine.engine.start()
        engine.engine.stop()

        last = {sequence.request.request_id: events[-1] for sequence, events in told}
        assert {event.code for event in last.values() if isinstance(event, ErrorEvent)} == {"shutting_down"}
        assert set(last) == {"a", "b"}
