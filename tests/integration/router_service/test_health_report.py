"""`GET /health/report` over a real registry and a real routing log."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.usage import read_usage
from services.shared.database.rows import JobRow
from services.shared.errors import InvalidAdapter
from services.shared.storage import Storage
from services.shared.vocabulary import JobKind, JobStatus
from tests.integration.router_service.replica_double import ReplicaDouble
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more. How many"


def ask(client: httpx.Client, **parameters: Any) -> httpx.Response:
    return client.post("/generate", json={"inputs": MATH, "parameters": {"max_new_tokens": 4, **parameters}})


def report(client: httpx.Client, **query: str) -> dict[str, Any]:
    response = client.get("/health/report", params=query)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()
    return made


def settled(client: httpx.Client, num_requests: int) -> dict[str, Any]:
    """The report once so many requests are in the log."""
    wait_until(lambda: report(client)["window"]["num_requests"] == num_requests, every_s=0.1)
    return report(client)


def evaluated(release: str, sessions: sessionmaker[Session], storage: Storage, figures: dict[str, Any]) -> None:
    """As an evaluation job leaves it."""
    with storage.stage() as folder:
        (folder / "report.json").write_text(json.dumps(figures))
        digest = storage.publish(folder)
    result = {"release": release, "artifacts": {"report": digest}}
    with sessions.begin() as session:
        session.add(
            JobRow(
                id="job-1",
                kind=JobKind.EVALUATION.value,
                status=JobStatus.SUCCEEDED.value,
                spec={},
                result=result,
            )
        )


class TestReport:
    def test_tells_who_spoke_and_who_did_not(self, three_experts: str, client: httpx.Client) -> None:
        for parameters in ({}, {}, {"adapter_id": "code"}, {"adapter_id": "base"}):
            assert ask(client, **parameters).status_code == 200

        made = settled(client, 4)

        # Two answers are three quarters of the best candidate's, one is code's, one the base's.
        by_name = {expert["name"]: expert for expert in made["experts"]}
        assert {name: expert["token_share"] for name, expert in by_name.items()} == pytest.approx(
            {"math": 0.375, "code": 0.25, "story": 0.0}
        )
        assert made["base_share"] == pytest.approx(0.375)
        assert (by_name["math"]["num_requests"], by_name["code"]["num_requests"]) == (2, 1)
        assert made["release"] == three_experts
        assert made["unused"] == ["story"]
        assert made["unhealthy"] == []
        assert made["load_imbalance"] == pytest.approx(0.744, abs=0.01)
        assert made["window"]["complete"]
        assert made["uncertainty"]["basis"] == "confidence"
        assert [suggestion["kind"] for suggestion in made["suggestions"]] == ["calibration"]

    def test_only_the_window_counts(self, three_experts: str, client: httpx.Client) -> None:
        ask(client)
        settled(client, 1)

        later = (datetime.now(UTC) - timedelta(milliseconds=1)).isoformat()

        assert report(client, since=later)["window"]["num_requests"] == 0
        assert report(client, since="2020-01-01T00:00:00Z")["window"]["num_requests"] == 1

    @pytest.mark.parametrize("since", ["yesterday", "2020-01-01T00:00:00", "2999-01-01T00:00:00Z"])
    def test_a_time_that_says_nothing_is_refused(self, client: httpx.Client, since: str) -> None:
        response = client.get("/health/report", params={"since": since})

        assert response.status_code == 400
        assert "since" in response.json()["error"]["param"]

    def test_an_adapter_that_cannot_be_used_shows(
        self, three_experts: str, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        ask(client, adapter_id="code")
        double.refusal = InvalidAdapter("The weights are bad.", param="plan.experts.code")
        both = ask(client, experts={"code": 0.5, "story": 0.5})
        assert (both.status_code, both.json()["error"]["param"]) == (InvalidAdapter.status, "plan.experts.code")
        double.refusal = None
        ask(client)

        made = settled(client, 3)

        # Not the story expert, which was asked for together with it.
        assert made["unhealthy"] == ["code"]
        code = next(expert for expert in made["experts"] if expert["name"] == "code")
        assert (code["problems"], code["num_failed"]) == (["fails"], 1)
        assert {"kind": "expert", "name": "code", "add_to_release": True} in [
            suggestion["spec"] for suggestion in made["suggestions"]
        ]

    def test_an_artifact_that_is_gone_shows(self, three_experts: str, client: httpx.Client, storage: Storage) -> None:
        digest = client.get("/experts/story").json()["versions"][0]["digest"]
        shutil.rmtree(storage.artifact(digest))

        story = next(expert for expert in report(client)["experts"] if expert["name"] == "story")

        assert story["problems"] == ["unused", "not_in_storage"]

    @pytest.mark.parametrize("seeds", [[], [{"systems": {"uniform": {"domains": {"maths": 1.0}}}}]])
    def test_an_evaluation_without_the_base_is_left_out(
        self,
        three_experts: str,
        client: httpx.Client,
        sessions: sessionmaker[Session],
        storage: Storage,
        seeds: list[Any],
    ) -> None:
        evaluated(
            three_experts, sessions, storage, {"domains": {"maths": "math"}, "losses": {"maths": 1.5}, "seeds": seeds}
        )

        assert [expert["loss"] for expert in report(client)["experts"]] == [None] * 3

    def test_what_an_evaluation_job_measured_is_told(
        self, three_experts: str, client: httpx.Client, sessions: sessionmaker[Session], storage: Storage
    ) -> None:
        systems = {"base": {"domains": {"maths": 2.0, "code": 1.0}}}
        figures = {
            "domains": {"maths": "math", "code": "code"},
            "losses": {"maths": 1.5, "code": 1.25},
            "seeds": [{"systems": systems}, {"systems": {"base": {"domains": {"maths": 3.0, "code": 1.0}}}}],
        }
        evaluated(three_experts, sessions, storage, figures)

        experts = {expert["name"]: expert for expert in report(client)["experts"]}

        assert (experts["math"]["loss"], experts["math"]["base_loss"]) == (1.5, 2.5)
        assert "worse_than_base" in experts["code"]["problems"]
        assert experts["story"]["loss"] is None

    def test_without_a_release_there_is_a_report_too(self, client: httpx.Client) -> None:
        made = report(client)

        assert (made["release"], made["experts"], made["load_imbalance"]) == (None, [], None)


class TestUsage:
    def test_the_newest_so_many_are_looked_at(
        self, three_experts: str, client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        for parameters in ({"adapter_id": "code"}, {"adapter_id": "story"}, {}):
            ask(client, **parameters)
        settled(client, 3)
        until = datetime.now(UTC)

        with sessions() as session:
            known = read_usage(session, since=until - timedelta(hours=1), until=until, unsure_below=0.5, max_requests=2)

        assert (known.num_requests, known.num_tokens) == (2, 8)
        assert set(known.spoken) == {"story", "math", "base"}
        assert known.spoken["math"].num_tokens == pytest.approx(3.0)
