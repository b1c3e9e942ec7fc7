"""Gaps over HTTP: listed, shown, dismissed, merged."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.gaps import close_gap

pytestmark = pytest.mark.integration


class TestReading:
    def test_lists_what_was_seen_last_first_by_page_and_by_status(
        self, make_gap: Callable[..., str], client: httpx.Client
    ) -> None:
        ids = [make_gap() for _ in range(3)]
        client.post(f"/gaps/{ids[1]}/dismiss")

        first = client.get("/gaps?limit=2").json()
        second = client.get(f"/gaps?limit=2&after={first['data'][-1]['id']}").json()
        still_open = client.get("/gaps?status=open").json()["data"]

        assert [gap["id"] for gap in first["data"] + second["data"]] == ids[::-1]
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert [gap["id"] for gap in still_open] == [ids[2], ids[0]]
        assert "report" not in first["data"][0]

    def test_one_is_shown_with_its_report_and_requests(
        self, make_gap: Callable[..., str], client: httpx.Client
    ) -> None:
        gap = client.get(f"/gaps/{make_gap()}").json()

        assert (gap["status"], gap["domain"], gap["expert_name"]) == ("open", "law", "law_article_0_expert")
        assert gap["report"]["data_request"] == {"num_examples": 150}
        assert gap["requests"] == ["r0-0", "r0-1"]
        assert (gap["job"], gap["merged_into"], gap["closed_by"], gap["follows"]) == ("job-1", None, None, None)

    @pytest.mark.parametrize("path", ["/gaps/gap-9", "/gaps?after=gap-9"])
    def test_what_is_not_there_is_not_found(self, client: httpx.Client, path: str) -> None:
        response = client.get(path)

        assert response.status_code == 404
        assert response.json()["error"]["code"] == "gap_not_found"

    def test_a_status_that_is_none_is_refused(self, client: httpx.Client) -> None:
        assert client.get("/gaps?status=lost").status_code == 400


class TestDeciding:
    def test_of_many_who_dismiss_at_once_one_is_heard(self, make_gap: Callable[..., str], client: httpx.Client) -> None:
        gap_id = make_gap()
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post(f"/gaps/{gap_id}/dismiss"), range(4)))

        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        refusal = next(answer for answer in answers if answer.status_code == 409).json()["error"]
        assert refusal["code"] == "gap_not_open"
        assert "was dismissed" in refusal["message"]
        assert client.get(f"/gaps/{gap_id}").json()["status"] == "dismissed"

    def test_a_merged_gap_gives_its_requests_to_the_other(
        self, make_gap: Callable[..., str], client: httpx.Client
    ) -> None:
        first, second, third = (make_gap() for _ in range(3))

        target = client.post(f"/gaps/{third}/merge", json={"into": second}).json()
        last = client.post(f"/gaps/{second}/merge", json={"into": first}).json()

        assert (target["id"], target["num_prompts"]) == (second, 4)
        assert (last["id"], last["num_prompts"]) == (first, 6)
        assert last["last_seen_at"].startswith("2026-11-20T14:00:00")
        assert len(client.get(f"/gaps/{first}").json()["requests"]) == 6
        for gap_id in (second, third):
            gap = client.get(f"/gaps/{gap_id}").json()
            assert (gap["status"], gap["merged_into"], gap["requests"]) == ("merged", first, [])

    def test_two_who_merge_two_gaps_into_each_other_do_not_lose_both(
        self, make_gap: Callable[..., str], client: httpx.Client
    ) -> None:
        first, second = make_gap(), make_gap()
        with ThreadPoolExecutor(2) as pool:
            ways = [(first, second), (second, first)]
            answers = list(pool.map(lambda way: client.post(f"/gaps/{way[0]}/merge", json={"into": way[1]}), ways))

        assert sorted(answer.status_code for answer in answers) == [200, 409]
        [left] = client.get("/gaps?status=open").json()["data"]
        assert left["num_prompts"] == 4

    def test_what_cannot_be_is_refused_and_changes_nothing(
        self, make_gap: Callable[..., str], client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        one, other, closed = (make_gap() for _ in range(3))
        with sessions.begin() as session:
            close_gap(session, closed, job_id="job-7", release="release-2")
        cases: list[tuple[str, dict[str, Any], int, str]] = [
            (f"/gaps/{one}/merge", {"into": one}, 400, "into itself"),
            (f"/gaps/{one}/merge", {"into": "gap-9"}, 404, "GET /gaps"),
            (f"/gaps/{one}/merge", {}, 400, "into"),
            (f"/gaps/{one}/merge", {"into": closed}, 409, "closed by job-7"),
            (f"/gaps/{closed}/merge", {"into": one}, 409, "closed by job-7"),
            (f"/gaps/{closed}/dismiss", {}, 409, "closed by job-7"),
            ("/gaps/gap-9/dismiss", {}, 404, "GET /gaps"),
        ]
        for path, body, status, word in cases:
            response = client.post(path, json=body)

            assert response.status_code == status, response.text
            assert word in response.json()["error"]["message"]
        assert [client.get(f"/gaps/{gap_id}").json()["status"] for gap_id in (one, other)] == ["open", "open"]
        assert client.get(f"/gaps/{closed}").json()["closed_by"]["release"] == "release-2"


class TestAnalysing:
    def test_it_is_a_job_like_others(self, client: httpx.Client) -> None:
        told = client.post("/jobs", json={"kind": "gap_analysis", "min_cluster_size": 5, "dry_run": True})
        job = client.post("/jobs", json={"kind": "gap_analysis", "min_cluster_size": 5})

        assert told.status_code == 200, told.text
        assert "each of 5 or more becomes a gap" in told.json()["plan"]
        assert job.status_code == 202, job.text
        assert job.json()["spec"]["min_cluster_size"] == 5

    @pytest.mark.parametrize("field", [{"min_cluster_size": 2}, {"window_s": 0}, {"max_requests": 10**6}, {"theta": 1}])
    def test_settings_that_make_no_sense_are_refused(self, client: httpx.Client, field: dict[str, Any]) -> None:
        response = client.post("/jobs", json={"kind": "gap_analysis", **field})

        assert response.status_code == 400
        assert next(iter(field)) in response.json()["error"]["message"]
