"""Releases over HTTP: made of names, activated with care, rolled back."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared import job_lease, jobs
from services.shared.config import RouterSettings
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.schemas.jobs import RouterJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus

TEXTS = ("math", "code", "story")
pytestmark = pytest.mark.integration


class TestMaking:
    def test_the_active_releases_router_is_taken_and_versions_may_be_named(
        self, three_experts: str, registry: Any, client: httpx.Client
    ) -> None:
        registry.expert("math")

        response = client.post("/releases", json={"experts": ["story", "math@1"], "note": "two"})

        assert response.status_code == 201, response.text
        release = response.json()
        assert [(part["name"], part["version"]) for part in release["experts"]] == [("story", 1), ("math", 1)]
        assert (release["status"], release["note"], release["base_model"]) == ("staged", "two", "double")
        assert release["router_digest"] == client.get(f"/releases/{three_experts}").json()["router_digest"]
        assert client.get(f"/releases/{release['id']}").json() == release

    def test_a_router_can_come_from_a_job(
        self, registry: Any, client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        registry.expert("math")
        digest = registry.router()
        with sessions.begin() as session:
            job_id = jobs.create_job(session, RouterJobSpec()).id
            job_lease.claim_job(session, job_id, owner="w", lease_s=60, max_attempts=3)
        early = client.post("/releases", json={"experts": ["math"], "router_job": job_id})
        with sessions.begin() as session:
            job_lease.finish_job(session, job_id, owner="w", status=JobStatus.SUCCEEDED, result={"router": digest})

        release = client.post("/releases", json={"experts": ["math"], "router_job": job_id})

        assert early.status_code == 400
        assert release.json()["router_digest"] == digest

    def test_what_cannot_be_is_refused(
        self, three_experts: str, client: httpx.Client, subtests: pytest.Subtests
    ) -> None:
        cases: list[tuple[dict[str, Any], int, str]] = [
            ({"experts": ["nobody"]}, 404, "nobody"),
            ({"experts": ["math@9"]}, 404, "there are 1"),
            ({"experts": ["math", "math"]}, 400, "twice"),
            ({"experts": ["base"]}, 404, "base"),
            ({"experts": ["math"], "router": "0" * 64}, 404, "No artifact"),
            ({"experts": ["math"], "graph": "0" * 64}, 404, "No artifact"),
            ({"experts": ["math"], "router": "../x"}, 400, "pattern"),
            ({"experts": ["math"], "router_job": "job-0"}, 404, "job-0"),
            ({"experts": ["math"], "router": "0" * 64, "router_job": "j"}, 400, "exclude each other"),
            ({}, 400, "experts"),
        ]
        for body, status, word in cases:
            with subtests.test(str(body)[:60]):
                response = client.post("/releases", json=body)

                assert response.status_code == status, response.text
                assert word in response.json()["error"]["message"]
                assert len(client.get("/releases").json()["data"]) == 1

    def test_an_expert_without_evidence_cannot_be_routed_to(
        self, three_experts: str, registry: Any, client: httpx.Client
    ) -> None:
        registry.expert("math", with_evidence=False)

        response = client.post("/releases", json={"experts": ["math"]})

        assert response.status_code == 400
        assert "exemplars" in response.json()["error"]["message"]
        assert len(client.get("/releases").json()["data"]) == 1

    def test_without_an_active_release_a_router_must_be_named(self, registry: Any, client: httpx.Client) -> None:
        registry.expert("math")

        assert client.post("/releases", json={"experts": ["math"]}).status_code == 400
        assert client.post("/releases", json={"experts": ["math"], "router": registry.router()}).status_code == 201


class TestActivation:
    def test_serves_from_then_on_and_rolls_back(self, three_experts: str, client: httpx.Client) -> None:
        new = client.post("/releases", json={"experts": ["code"]}).json()["id"]

        def serving() -> str:
            return str(client.post("/generate", json={"inputs": "x = 1"}).json()["routing"]["release"])

        activated = client.post(f"/releases/{new}/activate", json={"if_active": three_experts})
        after = serving()
        client.post(f"/releases/{three_experts}/activate")

        assert activated.json()["status"] == "active"
        assert (after, serving()) == (new, three_experts)
        assert client.get(f"/releases/{new}").json()["status"] == "retired"

    @pytest.mark.parametrize("expected", ["release-7", None])
    def test_another_active_release_than_expected_is_a_conflict(
        self, three_experts: str, client: httpx.Client, expected: str | None
    ) -> None:
        new = client.post("/releases", json={"experts": ["code"]}).json()["id"]

        response = client.post(f"/releases/{new}/activate", json={"if_active": expected})

        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
        assert three_experts in response.json()["error"]["message"]

    def test_a_release_whose_files_are_gone_is_not_activated(
        self, three_experts: str, client: httpx.Client, registry: Any
    ) -> None:
        new = client.post("/releases", json={"experts": ["code"]}).json()
        evidence = registry.storage.artifact(new["experts"][0]["digest"]) / "evidence" / "bigram.safetensors"
        evidence.write_bytes(b"damaged")

        response = client.post(f"/releases/{new['id']}/activate")

        assert response.status_code == 400
        assert client.post("/generate", json={"inputs": "x"}).json()["routing"]["release"] == three_experts

    def test_lists_page_newest_first(self, three_experts: str, client: httpx.Client) -> None:
        for _ in range(2):
            client.post("/releases", json={"experts": ["code"]})

        first = client.get("/releases?limit=2").json()
        second = client.get(f"/releases?limit=2&after={first['data'][-1]['id']}").json()

        assert [release["id"] for release in first["data"] + second["data"]] == ["release-3", "release-2", "release-1"]
        assert (first["has_more"], second["has_more"]) == (True, False)


class TestDigest:
    def test_the_same_content_twice_has_the_same_digest(self, three_experts: str, client: httpx.Client) -> None:
        made = [client.post("/releases", json={"experts": experts}).json() for experts in (TEXTS, TEXTS, TEXTS[::-1])]

        first, second, reordered = (release["digest"] for release in made)
        assert first == second == client.get(f"/releases/{three_experts}").json()["digest"]
        assert reordered != first


class TestRollback:
    def test_one_call_leads_back_and_is_served_at_once(self, three_experts: str, client: httpx.Client) -> None:
        new = client.post("/releases", json={"experts": ["code"]}).json()["id"]
        client.post(f"/releases/{new}/activate")

        back = client.post("/releases/rollback", json={"if_active": new})

        assert (back.status_code, back.json()["id"], back.json()["status"]) == (200, three_experts, "active")
        assert client.post("/generate", json={"inputs": "x = 1"}).json()["routing"]["release"] == three_experts
        further = client.post("/releases/rollback")
        assert (further.status_code, further.json()["error"]["code"]) == (409, "no_earlier_release")

    def test_another_active_release_than_expected_is_a_conflict(self, three_experts: str, client: httpx.Client) -> None:
        response = client.post("/releases/rollback", json={"if_active": "release-7"})

        assert response.status_code == 409
        assert three_experts in response.json()["error"]["message"]


class TestEvaluation:
    def test_a_worse_release_is_activated_by_force_only(self, three_experts: str, client: httpx.Client) -> None:
        evaluation = {"losses": {"math": 1.0, "code": 1.0}, "data": "held out"}
        told = client.put(f"/releases/{three_experts}/evaluation", json=evaluation).json()
        worse = {"experts": ["code"], "evaluation": {**evaluation, "losses": {"math": 3.5, "code": 0.9}}}
        new = client.post("/releases", json=worse).json()

        refused = client.post(f"/releases/{new['id']}/activate")
        forced = client.post(f"/releases/{new['id']}/activate", json={"force": True})

        assert told["evaluation"] == evaluation
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "release_regression")
        assert "math (3.5000 instead of 1.0000)" in refused.json()["error"]["message"]
        assert (forced.status_code, forced.json()["status"]) == (200, "active")

    @pytest.mark.parametrize("loss", [-1.0, "much", None, 1e400])
    def test_a_loss_that_is_none_is_refused(self, three_experts: str, client: httpx.Client, loss: object) -> None:
        response = client.put(
            f"/releases/{three_experts}/evaluation",
            content=json.dumps({"losses": {"math": loss}}),
            headers={"content-type": "application/json"},
        )

        assert response.status_code == 400
        assert "losses.math" in response.json()["error"]["param"]


class TestComparison:
    def test_tells_what_was_added_removed_changed_and_how_the_losses_moved(
        self, three_experts: str, registry: Any, client: httpx.Client
    ) -> None:
        registry.expert("math", with_evidence=True, content=b"trained again", metrics={"eval_loss": 1.5, "seconds": 3})
        registry.expert("extra", text="math")
        router = registry.router(RouterSettings(max_experts_per_token=2))
        body = {"experts": ["code", "extra", "math"], "router": router, "evaluation": {"losses": {"math": 1.5}}}
        new = client.post("/releases", json=body).json()
        client.put(f"/releases/{three_experts}/evaluation", json={"losses": {"math": 1.0, "code": 2.0}})

        told = client.get(f"/releases/{three_experts}/compare/{new['id']}").json()

        experts = told["experts"]
        assert [expert["name"] for expert in experts["added"]] == ["extra"]
        assert [expert["name"] for expert in experts["removed"]] == ["story"]
        assert [(change["name"], change["b"]["version"]) for change in experts["changed"]] == [("math", 2)]
        assert (experts["unchanged"], experts["reordered"]) == (["code"], True)
        assert told["router"]["settings"] == {"max_experts_per_token": {"a": 4, "b": 2}}
        assert (told["graph"], told["base_fingerprint"], told["same_content"]) == (None, None, False)
        assert told["evaluation"]["domains"] == {"math": {"a": 1.0, "b": 1.5, "difference": 0.5}}
        assert told["evaluation"]["regressions"] == ["math"]

    def test_a_release_differs_from_itself_in_nothing(self, three_experts: str, client: httpx.Client) -> None:
        told = client.get(f"/releases/{three_experts}/compare/{three_experts}").json()

        assert told["same_content"]
        assert [told[part] for part in ("base_fingerprint", "router", "graph", "evaluation")] == [None] * 4
        assert told["experts"]["unchanged"] == list(TEXTS)
        assert client.get(f"/releases/{three_experts}/compare/release-99").status_code == 404


class TestGraph:
    def test_is_told_over_the_releases_experts_in_their_order(
        self, three_experts: str, storage: Storage, client: httpx.Client
    ) -> None:
        adjacency_EE = np.array([[0.0, 0.25, 0.0], [0.0, 0.0, -0.5], [0.125, 0.0, 0.0]])
        with storage.stage() as folder:
            CooperationGraph(("code", "elsewhere", "math"), adjacency_EE).save(folder)
            digest = storage.publish(folder)
        release = client.post("/releases", json={"experts": ["math", "code"], "graph": digest}).json()["id"]

        graph = client.get(f"/releases/{release}/graph").json()

        assert (graph["release"], graph["digest"], graph["experts"]) == (release, digest, ["math", "code"])
        assert (graph["adjacency"], graph["sparsity"]) == ([[0.0, 0.125], [0.0, 0.0]], 0.5)

    def test_where_there_is_none_the_answer_says_so(self, three_experts: str, client: httpx.Client) -> None:
        response = client.get(f"/releases/{three_experts}/graph")

        assert (response.status_code, response.json()["error"]["code"]) == (404, "graph_not_found")


class TestInFlight:
    def test_a_request_ends_on_the_release_it_began_with(
        self, three_experts: str, client: httpx.Client, double: Any
    ) -> None:
        new = client.post("/releases", json={"experts": ["code"]}).json()["id"]
        double.pause_s = 0.05
        body = {"inputs": "12 + 5 = 17.", "parameters": {"max_new_tokens": 6}}
        with client.stream("POST", "/generate_stream", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            client.post(f"/releases/{new}/activate")
            last = [line for line in lines if line.startswith("data:")][-1]

        assert f'"release":"{three_experts}"' in last
        assert client.post("/generate", json=body).json()["routing"]["release"] == new
