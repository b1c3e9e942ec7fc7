"""`"dry_run": true`: what a job would do and cost, and nothing queued."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy.orm import Session, sessionmaker

from services.shared import job_lease, jobs
from services.shared.config import Settings
from services.shared.picture_files import RECORD_BYTES
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.vocabulary import JobStatus, model_name
from tests.integration.router_service.test_files_and_jobs import error_of, submit, upload

pytestmark = pytest.mark.integration

TEXTS = [f"number {number} and {number} make {2 * number}" for number in range(40)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def dry_run(client: httpx.Client, file_id: str, **fields: Any) -> dict[str, Any]:
    response = submit(client, file_id, dry_run=True, **fields)
    assert response.status_code == 200, response.text
    report: dict[str, Any] = response.json()
    return report


class TestExpert:
    def test_counts_steps_epochs_and_tokens_and_queues_nothing(self, client: httpx.Client, redis_url: str) -> None:
        file_id = upload(client, lines(TEXTS))
        with redis.Redis.from_url(redis_url) as broker:
            broker.flushdb()

            report = dry_run(
                client,
                file_id,
                hyperparameters={"packing": False, "batch_size": 4, "num_epochs": 2, "validation_fraction": 0.1},
            )

            assert broker.llen("cpu") == 0
        assert client.get("/jobs").json()["data"] == []
        assert (report["num_train_examples"], report["num_validation_examples"]) == (36, 4)
        assert (report["num_steps"], report["num_epochs"]) == (18, 2.0)
        file = report["files"]["training_file"]
        assert file["num_examples"] == 40
        mean = file["num_tokens"] / 40
        assert report["num_tokens"] == pytest.approx(2 * 36 * mean, rel=0.1)
        assert sum(entry["num_examples"] for entry in file["histogram"]) == 40
        estimate = report["estimate"]
        assert estimate["basis"] == "assumed"
        assert estimate["seconds"] > 0
        assert estimate["peak_memory_bytes"] > 100 * 1024**2

    def test_finds_duplicates_overlap_and_examples_that_are_cut(self, client: httpx.Client) -> None:
        training = upload(client, lines([*TEXTS, TEXTS[0], TEXTS[0], "word " * 400]))
        validation = upload(client, lines([*TEXTS[:3], *(f"unseen {number}" for number in range(20))]))

        report = dry_run(client, training, validation_file=validation, hyperparameters={"max_length": 64})

        assert report["files"]["training_file"]["num_duplicates"] == 2
        assert report["files"]["training_file"]["num_cut"] == 1
        assert report["num_overlapping"] == 3
        assert len(report["warnings"]) == 3

    def test_costs_more_for_more(self, client: httpx.Client) -> None:
        file_id = upload(client, lines(TEXTS))

        small, long, wide = (
            dry_run(client, file_id, hyperparameters=hyperparameters)["estimate"]
            for hyperparameters in ({}, {"num_epochs": 300}, {"rank": 256})
        )

        assert long["seconds"] > small["seconds"]
        assert wide["peak_memory_bytes"] > small["peak_memory_bytes"]

    def test_goes_by_the_rate_of_an_earlier_job_on_the_same_base_model(
        self, client: httpx.Client, sessions: sessionmaker[Session], app_settings: Settings
    ) -> None:
        file_id = upload(client, lines(TEXTS))
        with sessions.begin() as session:
            for base_model, rate in (("another", 1.0), (model_name(app_settings.base_model), 500.0)):
                job = jobs.create_job(session, ExpertJobSpec(name="math", training_file=file_id))
                job_lease.claim_job(session, job.id, owner="w", lease_s=60, max_attempts=3)
                metrics = {"base_model": base_model, "tokens_per_s": rate}
                result = {"metrics": metrics}
                job_lease.finish_job(session, job.id, owner="w", status=JobStatus.SUCCEEDED, result=result)

        report = dry_run(client, file_id)

        assert report["estimate"]["basis"] == "measured"
        assert report["estimate"]["tokens_per_s"] == 500.0
        assert report["estimate"]["seconds"] == pytest.approx(10 + report["num_tokens"] / 500, abs=0.1)

    def test_refuses_what_a_submission_would(self, client: httpx.Client) -> None:
        broken = upload(client, b'{"text": "fine"}\n{"text": cut')

        error = error_of(submit(client, broken, dry_run=True), 422)

        assert (error["param"], error["code"]) == ("training_file", "invalid_dataset")
        assert "line 2" in error["message"]
        assert error_of(submit(client, broken, dry_run=True, name="base"), 400)["param"] == "name"


def test_of_a_learned_router_counts_its_steps(client: httpx.Client) -> None:
    job = {
        "kind": "router",
        "router": "learned",
        "dry_run": True,
        "hyperparameters": {"num_steps": 7, "max_length": 16},
    }

    report = client.post("/jobs", json=job | {"training_files": {"math": upload(client, lines(TEXTS))}}).json()

    assert (report["num_steps"], report["num_tokens"]) == (7, 7 * 8 * 16)
    assert report["files"]["training_files.math"]["num_examples"] == 40


def test_of_a_bayes_router_has_no_steps_and_says_what_is_done_instead(client: httpx.Client) -> None:
    pairs, states = (
        client.post("/jobs", json={"kind": "router", "dry_run": True, "settings": settings}).json()
        for settings in ({}, {"tap_layer": 1})
    )

    assert (pairs["kind"], pairs["num_steps"]) == ("router", 0)
    assert "is not trained" in pairs["plan"]
    assert "states after layer 1" in states["plan"]
    assert pairs["estimate"]["basis"] == "assumed"
    assert 0 < pairs["estimate"]["seconds"] < states["estimate"]["seconds"]


def test_of_an_evaluation_counts_what_its_peers_are_trained(client: httpx.Client) -> None:
    file_id = upload(client, lines(TEXTS))
    job = {
        "kind": "evaluation",
        "dry_run": True,
        "held_out": {"math": file_id},
        "training_files": {"math": file_id},
        "peers": ["x_lora", "multi_task"],
        "x_lora": {"num_steps": 7},
        "multi_task": {"num_epochs": 2, "batch_size": 4, "max_length": 64},
    }

    thrice = client.post("/jobs", json=job).json()
    once = client.post("/jobs", json=job | {"peer_seeds": [0]}).json()
    fixed = client.post("/jobs", json=job | {"multi_task": {"max_steps": 5}}).json()

    assert thrice["num_steps"] == 3 * once["num_steps"]
    assert once["num_steps"] > 7
    assert fixed["num_steps"] == 3 * (7 + 5)
    assert "x_lora once for 7 steps" in once["plan"]
    assert "x_lora 3 times for 7 steps" in fixed["plan"]
    assert "multi_task 3 times for 5 steps" in fixed["plan"]


class TestSeveralProcesses:
    @pytest.fixture
    def app_settings(self, app_settings: Settings) -> Settings:
        trainer = app_settings.trainer.model_copy(update={"num_processes": 4})
        return app_settings.model_copy(update={"trainer": trainer})

    @pytest.mark.parametrize(("batch_size", "status"), [(6, 400), (8, 200)])
    def test_a_step_that_they_could_not_share_evenly_is_told(
        self, client: httpx.Client, batch_size: int, status: int
    ) -> None:
        numbers = {"packing": False, "batch_size": batch_size, "gradient_accumulation_steps": 1}

        response = submit(client, upload(client, lines(TEXTS)), dry_run=True, hyperparameters=numbers)

        if status == 200:
            assert response.status_code == status, response.text
            return
        error = error_of(response, status)
        assert error["param"] == "hyperparameters.batch_size"
        assert "such as 4" in error["message"]


class TestFromWhatEarlierJobsTook:
    @pytest.fixture
    def took(self, sessions: sessionmaker[Session]) -> Callable[..., str]:
        """An image job that has succeeded, and what it took; its id."""

        def took(*, seconds: float, peak: int = 10**9, **fields: Any) -> str:
            spec = ImageCooperationJobSpec.model_validate(fields)
            with sessions.begin() as session:
                row = jobs.create_job(session, spec)
                job_lease.claim_job(session, row.id, owner="w", lease_s=60, max_attempts=3)
                result = {"run": {"seconds": seconds, "peak_memory_bytes": peak}}
                job_lease.finish_job(session, row.id, owner="w", status=JobStatus.SUCCEEDED, result=result)
                return row.id

        return took

    def foretold(self, client: httpx.Client, **fields: Any) -> dict[str, Any]:
        response = client.post("/jobs", json={"kind": "image_cooperation", "dry_run": True} | fields)
        assert response.status_code == 200, response.text
        report: dict[str, Any] = response.json()
        return report

    def test_nothing_is_foretold_from_nothing(self, client: httpx.Client) -> None:
        report = self.foretold(client)

        assert report["estimate"] is None
        assert any("a small one first would tell" in warning for warning in report["warnings"])

    def test_time_is_in_proportion_with_its_range_and_how_good_it_is(
        self, client: httpx.Client, took: Callable[..., str]
    ) -> None:
        alone = took(seconds=20.0, num_epochs=2)
        from_one = self.foretold(client, num_epochs=10)["estimate"]
        took(seconds=60.0, peak=3 * 10**9, num_epochs=4)

        from_two = self.foretold(client, num_epochs=10)["estimate"]

        assert (from_one["seconds"], from_one["seconds_range"]) == (100.0, [100.0, 100.0])
        assert alone in from_one["explanation"]
        assert "not known how good" in from_one["explanation"]
        assert (from_two["seconds"], from_two["seconds_range"]) == (125.0, [100.0, 150.0])
        assert from_two["peak_memory_bytes"] == 3 * 10**9
        assert "within a factor of 1.5" in from_two["explanation"]

    def test_only_like_is_compared_with_like(self, client: httpx.Client, took: Callable[..., str]) -> None:
        took(seconds=20.0, setting="strong")
        took(seconds=20.0, queue="gpu")

        assert self.foretold(client, setting="published")["estimate"] is None

    def test_steps_are_counted_from_the_pictures(self, client: httpx.Client) -> None:
        record = bytes(RECORD_BYTES)
        files = [upload(client, num * record, "batch.bin") for num in (70, 60, 20)]
        uploaded = {"source": "files", "train": files[:2], "test": files[2:]}

        digits = self.foretold(client, num_epochs=3)
        pictures = self.foretold(client, num_epochs=3, setting="strong", data=uploaded)
        hub = self.foretold(client, data={"source": "hub", "name": "uoft-cs/cifar10"})

        assert digits["num_steps"] == 3 * 23  # 1437 pictures in batches of 64
        assert pictures["num_steps"] == 3 * 2  # 130 in batches of 125
        assert hub["num_steps"] is None
        assert "known when the worker has read them" in hub["plan"]
