"""`/route`, and `/requests`: what was decided, before and after."""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.assessment import Assessment
from services.router_service.request_log import RequestRecord, write_records
from services.shared.database.rows import RequestRow
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.packed_states import unpack_states
from services.shared.schemas.sequences import RoutingPlan
from services.shared.vocabulary import PlanMode
from tests.integration.router_service.base_folder import TEXTS
from tests.integration.router_service.replica_double import ReplicaDouble

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more."


def logged(client: httpx.Client, request_id: str) -> dict[str, Any]:
    response = client.get(f"/requests/{request_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ask(client: httpx.Client, prompt: str = MATH, **parameters: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(
        "/generate", json={"inputs": prompt, "parameters": {"max_new_tokens": 4, **parameters}}
    ).json()
    return answer


class TestRoute:
    def test_scores_every_token_and_plans_without_generating(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        route = client.post("/route", json={"inputs": MATH}).json()

        assert double.requests == []
        assert (route["release"], route["plan"]["mode"]) == (three_experts, "routed")
        assert "".join(token["text"] for token in route["tokens"]) == MATH
        last = route["tokens"][-1]
        assert set(last["scores"]) == {*TEXTS, "base"}
        assert sum(last["scores"].values()) == pytest.approx(1.0)
        assert max(last["weights"], key=last["weights"].__getitem__) == "math"
        assert all(sum(token["weights"].values()) == pytest.approx(1.0, abs=1e-5) for token in route["tokens"])
        assert route["confidence"] > 0.8

    def test_scores_are_the_release_scorers_own(self, three_experts: str, client: httpx.Client, registry: Any) -> None:
        release = client.get(f"/releases/{three_experts}").json()
        scorer = ReleaseScorer.load(
            router_dir=registry.storage.artifact(release["router_digest"]),
            graph_dir=None,
            experts=[(part["name"], registry.storage.artifact(part["digest"])) for part in release["experts"]],
            vocab_size=registry.tokenizer.vocab_size,
        )
        expected_TC = scorer.advance(scorer.start(), registry.tokenizer.encode(MATH))

        tokens = client.post("/route", json={"inputs": MATH}).json()["tokens"]

        for token, expected_C in zip(tokens, expected_TC, strict=True):
            assert list(token["scores"].values()) == pytest.approx(expected_C.tolist(), abs=1e-12)

    def test_text_of_no_known_domain_has_low_confidence(self, three_experts: str, client: httpx.Client) -> None:
        route = client.post("/route", json={"inputs": "nothing of that kind at all, or so and so on"}).json()

        assert route["confidence"] < 0.5

    def test_named_experts_are_planned_as_named(self, three_experts: str, client: httpx.Client) -> None:
        route = client.post("/route", json={"inputs": MATH, "parameters": {"experts": {"code": 0.5}}}).json()

        assert route["plan"] == {
            "mode": "fixed",
            "experts": [{"name": "code", "version": 1, "candidate": True}],
            "weights": {"code": 0.5},
        }
        assert route["confidence"] is None
        assert route["tokens"][0]["weights"] == {"code": 0.5, "base": 0.5}

    def test_without_a_release_the_base_is_planned(self, client: httpx.Client) -> None:
        assert client.post("/route", json={"inputs": MATH}).json()["plan"]["mode"] == "base"


class TestCandidates:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"max_candidates": 1}

    def test_are_the_best_of_the_prompt_and_no_more_than_the_setting(
        self, three_experts: str, client: httpx.Client
    ) -> None:
        experts = client.post("/route", json={"inputs": MATH}).json()["plan"]["experts"]

        assert {expert["name"]: expert["candidate"] for expert in experts} == {
            "math": True,
            "code": False,
            "story": False,
        }


class TestLog:
    def test_holds_plan_text_experts_and_weights_of_every_token(self, three_experts: str, client: httpx.Client) -> None:
        answer = ask(client, details=True)

        request = logged(client, answer["routing"]["request_id"])

        assert request["release"] == three_experts
        assert (request["prompt"], request["generated_text"]) == (MATH, answer["generated_text"])
        assert request["attribution"] == answer["routing"]["attribution"]
        assert request["confidence"] == pytest.approx(answer["routing"]["confidence"])
        assert request["parameters"] == {"max_new_tokens": 4, "details": True}
        assert request["finish_reason"] == "length"
        assert request["timings"]["prefill_ms"] == 2.0
        assert request["plan"]["mode"] == "routed"
        generated = [token for token in request["tokens"] if token["generated"]]
        assert [(token["id"], token["weights"]) for token in generated] == [
            (token["id"], token["routing"]) for token in answer["details"]["tokens"]
        ]
        prompt = [token for token in request["tokens"] if not token["generated"]]
        route = client.post("/route", json={"inputs": MATH}).json()
        assert [(token["text"], token["weights"]) for token in prompt] == [
            (token["text"], token["weights"]) for token in route["tokens"]
        ]

    def test_is_there_for_who_asks_right_after_the_answer(
        self, client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        with sessions() as slow, slow.begin():
            slow.execute(text("LOCK TABLE requests IN EXCLUSIVE MODE"))
            whole = ask(client)["routing"]["request_id"]
            streamed = client.post("/generate_stream", json={"inputs": MATH}).headers["x-request-id"]
            with ThreadPoolExecutor(2) as readers:
                found = [readers.submit(logged, client, request_id) for request_id in (whole, streamed)]
                _, waiting = wait(found, timeout=0.5)
                slow.commit()

        assert waiting == set(found)
        assert [reader.result()["id"] for reader in found] == [whole, streamed]

    def test_of_a_request_that_never_was_is_not_found_at_once(self, client: httpx.Client) -> None:
        begun = time.monotonic()

        response = client.get("/requests/req-nobody")

        assert (response.status_code, response.json()["error"]["code"]) == (404, "request_not_found")
        assert time.monotonic() - begun < 1.0

    def test_lists_newest_first_by_page_and_by_expert(self, three_experts: str, client: httpx.Client) -> None:
        ids = [ask(client)["routing"]["request_id"] for _ in range(3)]
        named = ask(client, adapter_id="code")["routing"]["request_id"]
        for request_id in (*ids, named):
            logged(client, request_id)

        first = client.get("/requests?limit=3").json()
        second = client.get(f"/requests?limit=3&after={first['data'][-1]['id']}").json()
        by_expert = client.get("/requests?expert=code").json()["data"]
        by_release = client.get("/requests?release=release-9").json()["data"]

        assert [item["id"] for item in first["data"] + second["data"]] == [named, *ids[::-1]]
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert [item["id"] for item in by_expert] == [named]
        assert by_release == []

    def test_a_clients_own_request_id_may_come_twice(self, client: httpx.Client) -> None:
        body = {"inputs": MATH}

        answers = [client.post("/generate", json=body, headers={"x-request-id": "mine"}) for _ in range(2)]

        assert {answer.headers["x-request-id"] for answer in answers} == {"mine"}
        for answer in answers:
            assert logged(client, answer.json()["routing"]["request_id"])["prompt"] == MATH

    def test_our_own_is_the_logs_name(self, client: httpx.Client) -> None:
        response = client.post("/generate", json={"inputs": MATH})

        assert response.headers["x-request-id"] == response.json()["routing"]["request_id"]


class TestWithoutPrompts:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"store_prompts": False}

    def test_who_spoke_is_kept_and_what_was_said_is_not(self, three_experts: str, client: httpx.Client) -> None:
        answer = ask(client)

        request = logged(client, answer["routing"]["request_id"])

        assert (request["prompt"], request["generated_text"]) == (None, None)
        assert {token["id"] for token in request["tokens"]} == {0}
        assert {token["text"] for token in request["tokens"]} == {""}
        assert request["tokens"][-1]["weights"] == {"math": 0.75, "base": 0.25}


class TestWhatIsKnownOfARequest:
    @pytest.fixture
    def record(self) -> RequestRecord:
        return RequestRecord(
            id="r1",
            endpoint="/generate",
            prompt=MATH,
            parameters={},
            plan=RoutingPlan(mode=PlanMode.BASE),
            assessment=Assessment(confidence=0.2, domain="math", domain_probability=0.9, gap=True),
            max_new_tokens=4,
            prompt_ids=[1, 2],
            prompt_gates=lambda: [{"base": 1.0}] * 2,
            states=[0.5, -2.0],
            prompt_nats=3.5,
            base_nats=4.0,
        )

    @pytest.mark.parametrize("store_prompts", [True, False])
    def test_is_kept_with_states_whether_prompts_are_or_not(
        self, sessions: sessionmaker[Session], record: RequestRecord, *, store_prompts: bool
    ) -> None:
        with sessions.begin() as session:
            write_records(session, [record], store_prompts=store_prompts)
            row = session.get_one(RequestRow, "r1")

        assert (row.flagged, row.domain, row.domain_probability) == (True, "math", 0.9)
        assert (row.prompt_nats, row.base_nats) == (3.5, 4.0)
        assert row.states is not None
        assert unpack_states(row.states).tolist() == [0.5, -2.0]

    def test_without_a_calibration_nothing_is_said(
        self, sessions: sessionmaker[Session], record: RequestRecord
    ) -> None:
        with sessions.begin() as session:
            write_records(session, [replace(record, assessment=None, states=None)], store_prompts=True)
            row = session.get_one(RequestRow, "r1")

        assert (row.flagged, row.states) == (None, None)
