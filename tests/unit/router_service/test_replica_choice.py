"""Which replica a plan goes to."""

import httpx
import pytest

from services.router_service.expert_client import ExpertClient
from services.router_service.metrics import Metrics
from services.router_service.replicas import Replica, Replicas
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


def status(*, running: int = 0, resident: tuple[str, ...] = ()) -> ReplicaStatus:
    return ReplicaStatus(running=running, waiting=0, num_slots=8, resident=resident, pinned=(), resident_bytes=0)


def base(fingerprint: str) -> BaseModelInfo:
    return BaseModelInfo(
        name="m", fingerprint=fingerprint, max_context=8, vocab_size=8, dtype="float32", num_parameters=1
    )


@pytest.fixture
def replicas() -> Replicas:
    return Replicas(["http://one", "http://two"], httpx.AsyncClient(), Metrics())


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

    def test_experts_that_are_no_candidates_do_not_attract(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status(running=1, resident=DIGESTS[2:])

        assert order(replicas)[0] == "http://one"

    def test_what_we_sent_since_the_last_look_counts(self, replicas: Replicas) -> None:
        one, two = replicas
        one.is_up = two.is_up = True
        one.status, two.status = status(), status()

        with one.occupied():
            assert order(replicas)[0] == "http://two"
        assert order(replicas)[0] == "http://one"

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
    assert Replica(ExpertClient("http://x", httpx.AsyncClient())).cost(["a"]) == 0
