"""What a calibrated release says of a request, and what is measured of those that it does not know."""

from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import RequestRow
from services.shared.modeling.calibration import Calibration
from services.shared.packed_states import unpack_states
from services.shared.vocabulary import UNKNOWN, PlanMode
from tests.integration.router_service.base_folder import TEXTS
from tests.integration.router_service.conftest import Registry
from tests.integration.router_service.replica_double import ReplicaDouble
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more."
NONSENSE = "zq xv qj wz kx vq zj qw xk jv"


@pytest.fixture
def router_settings() -> dict[str, Any]:
    return {"measured_per_s": 0.001}


@pytest.fixture
def calibration() -> Calibration:
    """Sure where an expert has most of the score; a request is known from one half on."""
    return Calibration(
        features=("best_score",),
        means=(0.8,),
        scales=(0.05,),
        weights=(1.0,),
        intercept=0.0,
        window=32,
        threshold=0.5,
        false_flags=0.05,
        highest_excess=0.1,
        range_share=0.95,
        states_layer=1,
    )


@pytest.fixture
def calibrated(registry: Registry, calibration: Calibration) -> str:
    """The digest of the calibration."""
    for name in TEXTS:
        registry.expert(name)
    registry.release(*TEXTS)
    with registry.storage.stage() as staged:
        calibration.save(staged)
        return registry.storage.publish(staged)


@pytest.fixture
def release(calibrated: str, client: httpx.Client) -> str:
    """A release with it, active."""
    made = client.post("/releases", json={"experts": list(TEXTS), "calibration": calibrated}).json()
    assert made["calibration_digest"] == calibrated
    client.post(f"/releases/{made['id']}/activate").raise_for_status()
    release_id: str = made["id"]
    return release_id


def ask(client: httpx.Client, prompt: str, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 3, **parameters}}
    answer: dict[str, Any] = client.post("/generate", json=body).raise_for_status().json()
    return answer


def test_a_known_prompt_has_its_domain(release: str, client: httpx.Client) -> None:
    routing = ask(client, MATH)["routing"]

    assert (routing["release"], routing["domain"], routing["gap"]) == (release, "math", False)
    assert 0.5 <= routing["confidence"] <= 1.0
    assert 0.0 < routing["domain_probability"] <= routing["confidence"]


def test_an_unknown_prompt_is_flagged_measured_and_kept(
    release: str, client: httpx.Client, double: ReplicaDouble, sessions: sessionmaker[Session]
) -> None:
    routing = ask(client, NONSENSE)["routing"]

    assert (routing["domain"], routing["gap"]) == (UNKNOWN, True)
    assert routing["domain_probability"] == pytest.approx(1.0 - routing["confidence"])
    logged = client.get(f"/requests/{routing['request_id']}").json()
    assert (logged["flagged"], logged["domain"]) == (True, UNKNOWN)

    readings = [request for request in double.requests if request.prompt_states]
    assert {(request.plan.mode, request.states_layer) for request in readings} == {
        (PlanMode.ROUTED, 1),
        (PlanMode.BASE, 1),
    }
    with sessions() as session:
        row = session.get_one(RequestRow, routing["request_id"])
        assert (row.prompt_nats, row.base_nats) == (1.0, 1.0)
        assert row.states is not None
        assert unpack_states(row.states).tolist() == [0.5, -0.25, float(row.num_prompt_tokens)]


def test_of_known_prompts_one_now_and_then_is_measured_too(
    release: str, client: httpx.Client, double: ReplicaDouble, sessions: sessionmaker[Session]
) -> None:
    ids = [ask(client, MATH)["routing"]["request_id"] for _ in range(3)]

    assert {client.get(f"/requests/{request_id}").json()["flagged"] for request_id in ids} == {False}
    with sessions() as session:
        measured = [session.get_one(RequestRow, request_id).states is not None for request_id in ids]
    assert measured == [True, False, False]
    assert len([request for request in double.requests if request.prompt_states]) == 2


def test_flagged_prompts_are_counted(release: str, client: httpx.Client) -> None:
    for prompt in (MATH, MATH, NONSENSE):
        ask(client, prompt)

    counted = client.get("/metrics").text

    assert 'amoe_prompts_assessed_total{flagged="true"} 1.0' in counted
    assert 'amoe_prompts_assessed_total{flagged="false"} 2.0' in counted


class TestABurst:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"measured_per_s": 0.1}

    def test_may_bring_the_ordinary_prompts_of_half_a_minute_at_once(
        self, release: str, client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        ids = [ask(client, MATH)["routing"]["request_id"] for _ in range(4)]

        assert {client.get(f"/requests/{request_id}").json()["flagged"] for request_id in ids} == {False}
        with sessions() as session:
            measured = [session.get_one(RequestRow, request_id).states is not None for request_id in ids]
        assert measured == [True, True, True, False]


class TestWithoutMeasuring:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"measured_per_s": 0.0}

    def test_nothing_more_is_read_of_known_prompts(
        self, release: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        request_id = ask(client, MATH)["routing"]["request_id"]

        assert client.get(f"/requests/{request_id}").json()["flagged"] is False
        assert [request.request_id for request in double.requests] == [request_id]


def test_a_request_that_chose_one_expert_tells_nothing_of_the_mixture(
    release: str, client: httpx.Client, sessions: sessionmaker[Session]
) -> None:
    request_id = ask(client, NONSENSE, integration="single")["routing"]["request_id"]

    assert client.get(f"/requests/{request_id}").json()["flagged"] is True
    with sessions() as session:
        row = session.get_one(RequestRow, request_id)
        assert (row.prompt_nats, row.base_nats) == (None, 1.0)


def test_a_flagged_request_is_logged_though_it_cannot_be_read(
    release: str, client: httpx.Client, double: ReplicaDouble
) -> None:
    assert ask(client, MATH)["routing"]["gap"] is False  # the service has seen the replica at work
    double.error_after_tokens = 1
    body = {"inputs": NONSENSE, "parameters": {"max_new_tokens": 1}}
    request_id = client.post("/generate", json=body).raise_for_status().json()["routing"]["request_id"]

    wait_until(lambda: client.get(f"/requests/{request_id}").status_code == 200, what="the request's log")
    assert client.get(f"/requests/{request_id}").json()["flagged"] is True


def test_route_says_the_same_without_an_answer(release: str, client: httpx.Client) -> None:
    route = client.post("/route", json={"inputs": NONSENSE}).json()
    routing = ask(client, NONSENSE)["routing"]

    told = ("confidence", "domain", "domain_probability", "gap")
    assert {name: route[name] for name in told} == {name: routing[name] for name in told}


def test_each_token_has_its_confidence(release: str, client: httpx.Client) -> None:
    answer = ask(client, MATH, details=True)

    tokens = answer["details"]["tokens"]
    assert tokens[0]["confidence"] == pytest.approx(answer["routing"]["confidence"])
    assert all(0.0 <= token["confidence"] <= 1.0 for token in tokens)
    again = client.post("/route", json={"inputs": MATH + tokens[0]["text"]}).json()
    assert tokens[1]["confidence"] == pytest.approx(again["confidence"])


def test_openais_routes_tell_the_same(release: str, client: httpx.Client) -> None:
    told = ask(client, MATH, details=True)
    body = {"model": "adaptive-moe", "prompt": MATH, "max_tokens": 3, "temperature": 0, "routing": {"details": True}}

    [choice] = client.post("/v1/completions", json=body).raise_for_status().json()["choices"]

    fields = ("confidence", "domain", "domain_probability", "gap")
    assert {name: choice["routing"][name] for name in fields} == {name: told["routing"][name] for name in fields}
    confidences = [token["confidence"] for token in choice["routing"]["tokens"]]
    assert confidences == [token["confidence"] for token in told["details"]["tokens"]]


def test_requests_that_name_their_experts_are_not_assessed(release: str, client: httpx.Client) -> None:
    routing = ask(client, NONSENSE, adapter_id="math")["routing"]

    assert {routing[name] for name in ("confidence", "domain", "domain_probability", "gap")} == {None}


def test_a_release_of_the_same_router_keeps_the_calibration(
    release: str, calibrated: str, client: httpx.Client
) -> None:
    names = list(TEXTS)[:2]

    assert client.post("/releases", json={"experts": names}).json()["calibration_digest"] == calibrated


def test_a_release_with_a_damaged_calibration_is_refused(
    release: str, client: httpx.Client, registry: Registry
) -> None:
    with registry.storage.stage() as staged:
        (staged / "calibration.json").write_text("{}")
        digest = registry.storage.publish(staged)

    refused = client.post("/releases", json={"experts": list(TEXTS), "calibration": digest})

    assert refused.status_code == 400
    assert "calibrate the release again" in refused.json()["error"]["message"]
