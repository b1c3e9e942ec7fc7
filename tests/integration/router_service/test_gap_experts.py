"""Experts for gaps, up to the moment a worker takes the job."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings, TeacherSettings
from services.shared.database.rows import GapRow
from tests.integration.router_service.test_dry_run import TEXTS, lines
from tests.integration.router_service.test_files_and_jobs import error_of, upload

pytestmark = pytest.mark.integration

KEY = "sk-very-secret-indeed"
TAUGHT = {"teacher": "big", "num_examples": 100}


@pytest.fixture
def app_settings(app_settings: Settings) -> Settings:
    """With a teacher that a key opens."""
    teacher = TeacherSettings(url="http://127.0.0.1:9/v1", model="big-1", api_key=KEY)
    return app_settings.model_copy(update={"teachers": {"big": teacher}})


@pytest.fixture
def gap(make_gap: Callable[..., str]) -> str:
    """An open gap; returns its id."""
    return make_gap()


def standing(status: str, gap: str, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.get_one(GapRow, gap).status = status


class TestSubmission:
    def test_is_the_job_that_post_jobs_would_queue(self, client: httpx.Client, gap: str) -> None:
        by_gap = client.post(f"/gaps/{gap}/expert", json=TAUGHT | {"approval": True})
        again = client.post("/jobs", json={"kind": "expert_creation", "gap": gap} | TAUGHT)

        assert by_gap.status_code == 202, by_gap.text
        job = by_gap.json()
        assert (job["kind"], job["status"]) == ("expert_creation", "queued")
        assert (job["spec"]["gap"], job["spec"]["teacher"], job["spec"]["approval"]) == (gap, "big", True)
        assert error_of(again, 409)["code"] == "gap_in_work"
        assert job["id"] in error_of(again, 409)["message"]

    def test_of_two_at_once_one_is_refused(self, client: httpx.Client, gap: str) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.post(f"/gaps/{gap}/expert", json=TAUGHT), range(8)))

        assert sorted(answer.status_code for answer in answers) == [202, *[409] * 7]

    def test_is_possible_again_once_the_first_has_ended(self, client: httpx.Client, gap: str) -> None:
        first = client.post(f"/gaps/{gap}/expert", json=TAUGHT).json()
        client.post(f"/jobs/{first['id']}/cancel")

        assert client.post(f"/gaps/{gap}/expert", json=TAUGHT).status_code == 202

    def test_nobody_dismisses_or_merges_a_gap_that_an_expert_is_made_for(
        self, client: httpx.Client, gap: str, make_gap: Callable[..., str]
    ) -> None:
        other = make_gap()
        job = client.post(f"/gaps/{gap}/expert", json=TAUGHT).json()
        changes: list[tuple[str, dict[str, Any], str]] = [
            (f"/gaps/{gap}/dismiss", {}, "gap"),
            (f"/gaps/{gap}/merge", {"into": other}, "gap"),
            (f"/gaps/{other}/merge", {"into": gap}, "into"),
        ]

        for path, body, param in changes:
            error = error_of(client.post(path, json=body), 409)
            assert (error["code"], error["param"]) == ("gap_in_work", param)
            assert job["id"] in error["message"]
        assert [one["status"] for one in client.get("/gaps").json()["data"]] == ["open", "open"]

        client.post(f"/jobs/{job['id']}/cancel")
        assert client.post(f"/gaps/{other}/merge", json={"into": gap}).status_code == 200
        assert client.post(f"/gaps/{gap}/dismiss").status_code == 200

    def test_repeated_with_its_key_finds_its_job(self, client: httpx.Client, gap: str) -> None:
        headers = {"idempotency-key": "once"}

        ids = [client.post(f"/gaps/{gap}/expert", json=TAUGHT, headers=headers).json()["id"] for _ in range(2)]

        assert ids[0] == ids[1]

    @pytest.mark.parametrize("status", ["dismissed", "merged", "closed"])
    def test_for_a_gap_that_is_not_open_is_refused(
        self, client: httpx.Client, gap: str, sessions: sessionmaker[Session], status: str
    ) -> None:
        standing(status, gap, sessions)

        assert error_of(client.post(f"/gaps/{gap}/expert", json=TAUGHT), 409)["code"] == "gap_not_open"

    @pytest.mark.parametrize(
        ("fields", "status", "param"),
        [
            ({}, 400, "training_files"),
            ({"teacher": "big", "training_files": [f"file-{'0' * 32}"]}, 400, "training_files"),
            ({"training_files": [f"file-{'0' * 32}"]}, 404, "training_files.0"),
            ({"teacher": "stranger"}, 404, "teacher"),
            ({"teacher": "http://10.0.0.1/v1"}, 400, "teacher"),
            ({"teacher": "demo:../../etc"}, 400, "teacher"),
            ({"teacher": "big", "gap": "gap-other"}, 400, "gap"),
            ({"teacher": "big", "num_examples": 99}, 400, "num_examples"),
            ({"teacher": "big", "num_examples": 501}, 400, "num_examples"),
            ({"teacher": "big", "complex": True, "search": [8]}, 400, "search"),
            ({"teacher": "big", "search": [8, 8]}, 400, "search"),
            ({"teacher": "big", "name": "base"}, 400, "name"),
            ({"teacher": "big", "domain": "unknown"}, 400, "domain"),
            (
                {"teacher": "big", "queue": "cpu", "hyperparameters": {"quantization": "4bit"}},
                400,
                "hyperparameters.quantization",
            ),
        ],
    )
    def test_that_cannot_be_done_says_which_field_is_wrong(
        self, client: httpx.Client, gap: str, fields: dict[str, Any], status: int, param: str
    ) -> None:
        for dry_run in (False, True):
            error = error_of(client.post(f"/gaps/{gap}/expert", json=fields | {"dry_run": dry_run}), status)

            assert error["param"] == param
        assert client.get("/jobs").json()["data"] == []

    def test_without_a_gap_needs_a_name_and_instructions(self, client: httpx.Client) -> None:
        alone = {"kind": "expert_creation"} | TAUGHT

        assert error_of(client.post("/jobs", json=alone), 400)["param"] == "name"
        assert error_of(client.post("/jobs", json=alone | {"name": "chess"}), 400)["param"] == "instructions"
        whole = alone | {"name": "chess", "instructions": "questions about chess"}
        assert client.post("/jobs", json=whole).status_code == 202
        assert error_of(client.post("/gaps/gap-none/expert", json=TAUGHT), 404)["param"] == "gap"
        assert error_of(client.post("/gaps/GAP!/expert", json=TAUGHT), 400)["param"] == "gap_id"

    def test_tells_nobody_the_teachers_key(self, client: httpx.Client, gap: str) -> None:
        told = [client.post(f"/gaps/{gap}/expert", json=fields).text for fields in (TAUGHT, {"teacher": "stranger"})]

        assert not any(KEY in one for one in told)


class TestDryRun:
    def test_says_what_a_teacher_will_be_asked(self, client: httpx.Client, gap: str) -> None:
        report = client.post(f"/gaps/{gap}/expert", json=TAUGHT | {"dry_run": True, "complex": True}).json()

        assert "the teacher big for 100 examples" in report["plan"]
        assert "trains at rank 24" in report["plan"]
        assert report["num_steps"] is None
        assert client.get("/jobs").json()["data"] == []

    def test_counts_the_steps_of_files(self, client: httpx.Client, gap: str) -> None:
        file_id = upload(client, lines(TEXTS))
        fields = {"training_files": [file_id], "search": [4, 8], "held_out_fraction": 0.25}
        hyperparameters = {"packing": False, "batch_size": 4, "num_epochs": 2, "validation_fraction": 0.1}

        response = client.post(
            f"/gaps/{gap}/expert", json=fields | {"hyperparameters": hyperparameters, "dry_run": True}
        )

        report = response.json()
        assert report["files"]["training_files.0"]["num_examples"] == 40
        assert report["num_steps"] == 2 * 2 * 7
