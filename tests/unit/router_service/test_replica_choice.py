"""Which replica a plan goes to."""

from collections import Counter
from contextlib import ExitStack
from random import Random

import httpx
import pytest

from services.router_service.discovery import Discovery
from services.router_service.expert_client import ExpertClient
from services.router_service.metrics import Metrics
from services.router_service.replica import Replica
from services.router_service.replica_choice import ranked
from services.router_service.replicas import Replicas
from services.shared.errors import Unavailable
from services.shared.schemas.sequences import BaseModelInfo, ExpertRef, ReplicaStatus, RoutingPlan
from services.shared.vocabulary import PlanMode

DIGESTS = tuple(letter * 64 for letter in "abcd")
PLAN = RoutingPlan(
    mode=PlanMode.FIXED,
    experts=tuple(ExpertRef(name=f"e{i}", version=1, digest=digest) for i, digest in enumerate(DIGESTS)),
    candidates=("e0", "e1"),
    weights={"e0": 1.0, "e1": 1.0},
)


def status(*, running: int = 0, resident: tuple[str, ...] = (), draining: bool = False) -> ReplicaStatus:
    return ReplicaStatus(
        running=running, waiting=0, num_slots=8, resident=resident, pinned=(), resident_bytes=0, draining=draining
    )


def base(fingerprint: str) -> BaseModelInfo:
    return BaseModelInfo(
        name="m", fingerprint=fingerprint, max_context=8, vocab_size=8, dtype="float32", device="cpu", num_parameters=1
    )


@pytest.fixture
def replicas() -> Replicas:
    return Replicas(Discovery(["http://one", "http://two"]), httpx.AsyncClient(), Metrics(), draw=Random(0))


def order(replicas: Replicas, fingerprint: str | None = None) -> list[str]:
    return [replica.client.url for replica in replicas.ranked(PLAN, fingerprint)]


class TestChoice:
    def test_affinity_beats_a_little_load(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status(running=3, resident=DIGESTS[:2])

        assert order(replicas) == ["http://two", "http://one"]

    def test_much_load_beats_affinity(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status(running=5, resident=DIGESTS[:2])

        assert order(replicas) == ["http://one", "http://two"]

    def test_adapters_in_host_memory_beat_adapters_on_disk_and_lose_to_slots(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        in_memory = status(running=1).model_copy(update={"host_resident": DIGESTS[:2]})
        one.status, two.status = in_memory, status(running=1)
        assert order(replicas)[0] == "http://one"

        two.status = status(running=1, resident=DIGESTS[:2])
        assert order(replicas)[0] == "http://two"

    def test_experts_that_are_no_candidates_do_not_attract(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status(running=1, resident=DIGESTS[2:])

        assert order(replicas)[0] == "http://one"

    def test_what_we_sent_since_the_last_look_counts(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status()
        base_only = RoutingPlan(mode=PlanMode.BASE)

        with one.occupied(base_only):
            assert order(replicas)[0] == "http://two"
        with two.occupied(base_only):
            assert order(replicas)[0] == "http://one"

    def test_an_adapter_sent_since_the_last_look_counts_as_there(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status()

        with one.occupied(PLAN):
            pass

        assert [order(replicas)[0] for _ in range(20)] == ["http://one"] * 20
        for _ in range(2):
            one.heard(status(), num_ours_when_asked=0, at_s=0.0)
        assert one.num_missing({DIGESTS[0]}) == 1, "two looks later it must be in the replica's own word"

    def test_our_own_sequences_are_not_counted_twice(self, replicas: Replicas) -> None:
        one, _ = replicas
        with one.occupied(PLAN), one.occupied(PLAN):
            one.heard(status(running=5), num_ours_when_asked=2, at_s=0.0)
            assert one.load == 5
            with one.occupied(PLAN):
                assert one.load == 6
        assert one.load == 3

    def test_one_that_drains_is_not_tried(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(draining=True), status(running=50)

        assert order(replicas) == ["http://two"]
        two.status = status(draining=True)
        with pytest.raises(Unavailable, match="drained"):
            order(replicas)

    def test_one_that_is_down_is_tried_last(self, replicas: Replicas) -> None:
        _, two = replicas
        two.is_up, two.status = True, status(running=50)

        assert order(replicas) == ["http://two", "http://one"]

    def test_one_with_another_base_model_is_not_tried(self, replicas: Replicas) -> None:
        one, two = replicas
        one.base, two.base = base("f" * 64), base("e" * 64)

        assert order(replicas, "e" * 64) == ["http://two"]
        with pytest.raises(Unavailable, match="another base model"):
            order(replicas, "d" * 64)


def test_a_replica_never_seen_can_be_tried() -> None:
    assert Replica("x", ExpertClient("http://x", httpx.AsyncClient())).cost(["a"]) == 0


def fleet(*statuses: ReplicaStatus) -> list[Replica]:
    """Replicas that are up."""
    client = ExpertClient("http://x", httpx.AsyncClient())
    return [Replica(f"r{index}", client, status=said, is_up=True) for index, said in enumerate(statuses)]


class TestTwoChoices:
    def test_a_stale_minimum_is_not_flooded(self) -> None:
        """100 router services that all believe that one of ten replicas is idle: in turn they would all take it."""
        replicas = fleet(status(running=0), *(status(running=1) for _ in range(9)))

        firsts = Counter(ranked(replicas, (), Random(seed))[0].id for seed in range(1000))

        # It is among two of ten drawn in one of five cases.
        assert 150 < firsts["r0"] < 250
        assert set(firsts) == {f"r{index}" for index in range(10)}

    def test_loads_stay_within_what_two_choices_promise(self) -> None:
        """1,000 requests on ten replicas whose own word never comes: at most a few apart, where one choice is 30."""
        replicas = fleet(*(status() for _ in range(10)))
        draw = Random(1)

        with ExitStack() as requests:
            for _ in range(1000):
                best = ranked(replicas, (), draw)[0]
                requests.enter_context(best.occupied(RoutingPlan(mode=PlanMode.BASE)))
            loads = [replica.num_ours for replica in replicas]

        assert sum(loads) == 1000
        assert max(loads) - min(loads) <= 6

    def test_the_only_holder_of_the_experts_is_always_considered(self) -> None:
        replicas = fleet(*(status() for _ in range(9)), status(running=1, resident=DIGESTS[:2]))

        assert {ranked(replicas, DIGESTS[:2], Random(seed))[0].id for seed in range(200)} == {"r9"}

    def test_a_busy_holder_is_left(self) -> None:
        replicas = fleet(*(status() for _ in range(9)), status(running=5, resident=DIGESTS[:2]))

        assert "r9" not in {ranked(replicas, DIGESTS[:2], Random(seed))[0].id for seed in range(200)}

    def test_all_that_are_up_come_before_any_that_is_down(self) -> None:
        replicas = fleet(*(status(running=index) for index in range(6)))
        replicas[0].is_up = replicas[1].is_up = False

        for seed in range(50):
            ids = [replica.id for replica in ranked(replicas, (), Random(seed))]
            assert sorted(ids) == ["r0", "r1", "r2", "r3", "r4", "r5"]
            assert set(ids[-2:]) == {"r0", "r1"}
