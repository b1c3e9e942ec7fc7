"""Slots over a real mixture: pins, bytes, and what happens to those who leave."""

from collections.abc import Mapping

import pytest

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.host_cache import HostCache
from services.expert_service.sequence import PlannedAdapter
from services.shared.errors import Conflict, InvalidRequest
from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import LoraMixture
from tests.unit.expert_service.engine_parts import hand_engine, make_adapters
from tests.unit.shared.modeling.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

NAMES = ("ada", "bob", "cyd")
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module", name="adapters")
def three_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    return make_adapters(tmp_path_factory.mktemp("adapters"), NAMES)


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def pins(adapters: Mapping[str, Adapter], *names: str) -> dict[str, Adapter]:
    return {digest(name): adapters[name] for name in names}


def planned(adapters: Mapping[str, Adapter], *names: str) -> list[PlannedAdapter]:
    return [PlannedAdapter(name, digest(name), adapters[name]) for name in names]


class TestPins:
    def test_are_brought_in_at_once_and_stay(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, num_slots=2)
        engine.cache.pin(pins(adapters, "ada"))
        assert engine.cache.resident == (digest("ada"),)
        for index, name in enumerate(["bob", "cyd", "bob", "ada", "cyd"]):
            engine.submit(str(index), PROMPT, fixed={name: 1.0}, max_new_tokens=2)
            engine.run()
            assert digest("ada") in engine.cache.resident
        assert engine.cache.counts.misses == 4
        assert engine.engine.status.pins == (digest("ada"),)

        engine.cache.pin({})
        for index, name in enumerate(["bob", "cyd"]):
            engine.submit(f"later {index}", PROMPT, fixed={name: 1.0}, max_new_tokens=2)
            engine.run()
        assert digest("ada") not in engine.cache.resident

    def test_wait_for_those_in_use_and_come_before_those_that_wait(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, num_slots=2)
        engine.submit("running", PROMPT, fixed={"bob": 0.5, "cyd": 0.5}, max_new_tokens=4)
        engine.step()
        engine.cache.pin(pins(adapters, "ada"))
        assert digest("ada") not in engine.cache.resident
        engine.submit("next", PROMPT, fixed={"bob": 0.5, "cyd": 0.5}, max_new_tokens=2)
        engine.run()
        engine.step()

        assert digest("ada") in engine.cache.resident
        assert len(engine.ids("next")) == 2

    def test_must_leave_room_for_others(self, adapters: dict[str, Adapter]) -> None:
        size = adapters["ada"].num_bytes
        engine = hand_engine(adapters, num_slots=2, slot_bytes=3 * size)
        with pytest.raises(Conflict, match="one must stay free"):
            engine.cache.pin(pins(adapters, "ada", "bob"))
        tight = hand_engine(adapters, num_slots=4, slot_bytes=3 * size)
        tight.cache.pin(pins(adapters, "ada", "bob"))
        with pytest.raises(Conflict, match="room for one more"):
            tight.cache.pin(pins(adapters, *NAMES))
        assert tight.cache.pins == (digest("ada"), digest("bob"))

    def test_count_against_what_a_plan_may_name(self, adapters: dict[str, Adapter]) -> None:
        cache = hand_engine(adapters, num_slots=2).cache
        cache.pin(pins(adapters, "ada"))
        cache.check_fits(planned(adapters, "ada", "bob"))
        with pytest.raises(InvalidRequest, match="1 slots beside 1 pinned") as refused:
            cache.check_fits(planned(adapters, "bob", "cyd"))
        assert refused.value.error_code == "too_many_experts"

    def test_yield_to_a_plan_that_was_accepted_before_them(self, adapters: dict[str, Adapter]) -> None:
        engine = hand_engine(adapters, num_slots=2)
        engine.submit("before", PROMPT, fixed={"bob": 0.5, "cyd": 0.5}, max_new_tokens=2)
        engine.cache.pin(pins(adapters, "ada"))
        engine.run()
        engine.step()

        assert len(engine.ids("before")) == 2
        assert digest("ada") in engine.cache.resident


class TestTiers:
    def test_a_slot_on_a_cpu_holds_the_tensors_of_host_memory(self, adapters: dict[str, Adapter]) -> None:
        mixture = LoraMixture.attach(tiny_model(), num_slots=1)
        assert mixture.prepare(adapters["ada"]) is adapters["ada"]

    def test_who_leaves_a_slot_stays_in_host_memory(self, adapters: dict[str, Adapter]) -> None:
        host = HostCache(adapters["ada"].num_bytes)
        for name in ("ada", "bob"):
            host.keep(digest(name), adapters[name])
        assert host.digests == (digest("bob"),)
        engine = hand_engine(adapters, num_slots=1)
        cache = AdapterCache(engine.runner.mixture, slot_bytes=2**30, host=host)
        for name in ("ada", "bob"):
            sequence = engine.sequence(name, PROMPT, fixed={name: 1.0})
            assert cache.reserve(sequence)
            assert cache.slots_of(sequence) == {name: 0}
            cache.release(sequence)

        assert host.digests == (digest("ada"),)
