"""Who gets slots in which order, counted in steps of an engine that the test drives."""

import pytest
from structlog.testing import capture_logs

from services.shared.modeling.adapter_files import Adapter
from services.shared.vocabulary import FinishReason
from tests.unit.expert_service.engine_parts import HandEngine, HeldCopies, hand_engine, make_adapters

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module", name="adapters")
def three_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    return make_adapters(tmp_path_factory.mktemp("adapters"), ("ada", "bob", "cyd"))


def submit(engine: HandEngine, name: str, *experts: str, tokens: int = 3) -> None:
    weights = dict.fromkeys(experts, 0.5)
    engine.submit(name, PROMPT, fixed=weights or None, max_new_tokens=tokens)


class TestOrder:
    @pytest.mark.parametrize("max_overtaken", [0, 1, 4])
    def test_one_slot_under_steady_traffic_serves_the_other_expert_in_bounded_time(
        self, adapters: dict[str, Adapter], max_overtaken: int
    ) -> None:
        engine = hand_engine(adapters, num_slots=1, max_sequences=4, max_overtaken=max_overtaken)
        submit(engine, "first", "ada")
        engine.step()
        submit(engine, "other", "bob")
        num_steps = 0
        while not engine.tokens("other"):
            submit(engine, f"ada-{num_steps}", "ada")
            engine.step()
            num_steps += 1
            assert num_steps < 50, "starved"

        served_before = [name for name in engine.events if name.startswith("ada-")]
        assert len(served_before) == max_overtaken
        # The last that overtook it came at step `max_overtaken` and ran for three.
        assert num_steps <= max_overtaken + 4
        engine.run()
        assert len(engine.ids("other")) == 3

    def test_those_whose_experts_are_at_hand_pass_one_that_waits(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, num_slots=2, max_sequences=6)
        submit(engine, "a", "ada", tokens=12)
        submit(engine, "b", "bob", tokens=12)
        submit(engine, "both", "ada", "cyd")
        submit(engine, "more", "bob", tokens=2)
        engine.step()
        engine.step()

        assert len(engine.ids("more")) == 2
        assert not engine.tokens("both")
        engine.run()
        assert len(engine.ids("both")) == 3

    def test_a_sequence_without_adapters_always_passes(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, num_slots=1, max_sequences=6, max_overtaken=0)
        submit(engine, "a", "ada", tokens=20)
        submit(engine, "b", "bob")
        submit(engine, "again", "ada")
        submit(engine, "base", tokens=2)
        engine.step()
        engine.step()

        assert len(engine.ids("base")) == 2
        assert not engine.tokens("b")
        assert not engine.tokens("again")

    def test_sequences_that_hold_slots_but_no_row_do_not_block_one_that_waits_for_slots(
        self, adapters: dict[str, Adapter]
    ) -> None:
        engine = hand_engine(adapters, num_slots=2, max_sequences=1, max_overtaken=1)
        submit(engine, "a", "ada", tokens=6)
        engine.step()
        submit(engine, "wide", "bob", "cyd")
        for index in range(4):
            submit(engine, f"ada-{index}", "ada")
        engine.run()

        assert all(len(engine.ids(name)) == 3 for name in ("wide", "ada-0", "ada-1", "ada-2", "ada-3"))
        assert list(engine.events).index("wide") <= 2


class TestCopies:
    def test_nobody_else_waits_for_a_copy(self, adapters: dict[str, Adapter]) -> None:
        copies = HeldCopies()
        engine = hand_engine(adapters, copies=copies)
        submit(engine, "ready", "ada", tokens=30)
        engine.step()
        assert copies.finish() == 1
        engine.step()
        submit(engine, "cold", "bob", "cyd")
        submit(engine, "base", tokens=30)
        for _ in range(5):
            before = len(engine.tokens("ready")), len(engine.tokens("base"))
            engine.step()
            assert (len(engine.tokens("ready")), len(engine.tokens("base"))) > before
        assert not engine.tokens("cold")
        assert engine.engine.status.waiting == 1

        assert copies.finish() == 2
        engine.step()
        assert engine.tokens("cold")

    def test_a_copy_for_one_that_left_is_of_use_to_the_next(self, adapters: dict[str, Adapter]) -> None:
        copies = HeldCopies()
        engine = hand_engine(adapters, num_slots=1, copies=copies)
        gone = engine.submit("gone", PROMPT, fixed={"ada": 1.0})
        engine.step()
        engine.engine.cancel(gone)
        submit(engine, "next", "ada")
        submit(engine, "other", "bob")
        engine.step()
        assert gone.finish_reason is FinishReason.CANCELLED
        assert engine.engine.status.waiting == 2

        assert copies.finish() == 1
        engine.step()
        assert engine.tokens("next")
        assert copies.finish() == 0

    def test_a_copy_that_fails_ends_those_that_need_it_and_is_tried_again_for_the_next(
        self, adapters: dict[str, Adapter]
    ) -> None:
        copies = HeldCopies()
        engine = hand_engine(adapters, num_slots=1, copies=copies)
        submit(engine, "unlucky", "ada")
        engine.step()
        copies.finish(RuntimeError("the device is full"))
        with capture_logs():
            engine.step()
        assert engine.error("unlucky").code == "engine_error"
        assert engine.cache.resident == ()

        submit(engine, "next", "ada")
        engine.step()
        copies.finish()
        engine.run()
        assert len(engine.ids("next")) == 3
