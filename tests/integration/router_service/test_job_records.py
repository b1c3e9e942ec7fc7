"""What a job leaves beside its row: metrics, log, artifacts."""

import hashlib
import json
from pathlib import Path

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared import job_lease, jobs
from services.shared.job_metrics import record_metrics
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from tests.integration.router_service.test_files_and_jobs import error_of

pytestmark = pytest.mark.integration


@pytest.fixture
def job_id(client: httpx.Client, sessions: sessionmaker[Session]) -> str:
    """A running job."""
    with sessions.begin() as session:
        row = jobs.create_job(session, ExpertJobSpec(name="math", training_file="file-" + "0" * 32))
        job_lease.claim_job(session, row.id, owner="w", lease_s=60, max_attempts=3)
        return row.id


def finish(sessions: sessionmaker[Session], job_id: str, result: dict[str, object]) -> None:
    with sessions.begin() as session:
        job_lease.finish_job(session, job_id, owner="w", status=JobStatus.SUCCEEDED, result=result)


class TestMetrics:
    def test_come_in_the_order_of_steps_and_a_repeated_step_overwrites(
        self, client: httpx.Client, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        with sessions.begin() as session:
            record_metrics(session, job_id, {2: {"loss": 2.0}, 1: {"loss": 3.0}})
            record_metrics(session, job_id, {2: {"eval_loss": 2.5}, 3: {"loss": 1.0}})
            record_metrics(session, job_id, {2: {"loss": 2.25}})

        answer = client.get(f"/jobs/{job_id}/metrics").json()
        later = client.get(f"/jobs/{job_id}/metrics?after_step=2").json()

        assert [(point["step"], point["figures"]) for point in answer["data"]] == [
            (1, {"loss": 3.0}),
            (2, {"loss": 2.25, "eval_loss": 2.5}),
            (3, {"loss": 1.0}),
        ]
        assert [point["step"] for point in later["data"]] == [3]

    def test_are_thinned_out_to_so_many_with_the_last_and_the_evaluations_among_them(
        self, client: httpx.Client, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        with sessions.begin() as session:
            record_metrics(session, job_id, {step: {"loss": 1.0} for step in range(1, 1001)})
            record_metrics(session, job_id, {step: {"eval_loss": 1.0} for step in (100, 350)})

        for max_points in (1, 10, 1000):
            points = client.get(f"/jobs/{job_id}/metrics?max_points={max_points}").json()["data"]
            steps = [point["step"] for point in points]
            assert len(steps) == max_points
            assert steps == sorted(steps)
            if max_points > 2:
                assert {100, 350, 1000} <= set(steps)

    def test_of_no_job_and_absurd_bounds_are_refused(self, client: httpx.Client, job_id: str) -> None:
        error_of(client.get("/jobs/job-unknown/metrics"), 404)
        for query in ("max_points=0", "max_points=1000000", "after_step=-1", f"after_step={2**70}"):
            error_of(client.get(f"/jobs/{job_id}/metrics?{query}"), 400)


class TestLogs:
    def test_are_text_with_tracebacks_and_empty_before_the_start(
        self, client: httpx.Client, storage: Storage, job_id: str
    ) -> None:
        assert client.get(f"/jobs/{job_id}/logs").text == ""
        log = storage.job_folder(job_id) / "log.jsonl"
        log.parent.mkdir(parents=True)
        entries = [
            {"at": "2026-11-21T12:00:00", "level": "info", "logger": "l", "message": "job started", "attempt": 1},
            {"at": "2026-11-21T12:00:01", "level": "error", "message": "job failed", "traceback": "Traceback\n  x\n"},
        ]
        log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

        answer = client.get(f"/jobs/{job_id}/logs")

        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.splitlines() == [
            "2026-11-21T12:00:00 info    job started attempt=1",
            "2026-11-21T12:00:01 error   job failed",
            "Traceback",
            "  x",
        ]

    def test_are_bounded_to_the_end(self, client: httpx.Client, storage: Storage, job_id: str) -> None:
        log = storage.job_folder(job_id) / "log.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text("".join(json.dumps({"message": f"line {number}"}) + "\n" for number in range(10_000)))

        lines = client.get(f"/jobs/{job_id}/logs?max_bytes=1024").text.splitlines()

        assert 10 < len(lines) < 60
        assert lines[-1].strip() == "line 9999"
        error_of(client.get(f"/jobs/{job_id}/logs?max_bytes={2**40}"), 400)


class TestArtifacts:
    @pytest.fixture
    def published(self, storage: Storage, sessions: sessionmaker[Session], job_id: str) -> dict[str, bytes]:
        """Files by name; the job has succeeded with them."""
        files = {
            "adapter_model.safetensors": b"\x00weights",
            "evidence/bigram.safetensors": b"counts",
            "experiment.tar.gz": b"\x1f\x8b",
        }
        with storage.stage() as staged:
            for name, content in files.items():
                (staged / name).parent.mkdir(exist_ok=True)
                (staged / name).write_bytes(content)
            digest = storage.publish(staged)
        finish(sessions, job_id, {"artifacts": {"expert": digest}})
        return files

    def test_are_listed_with_sizes_and_digests_and_come_byte_for_byte(
        self, client: httpx.Client, job_id: str, published: dict[str, bytes]
    ) -> None:
        listed = client.get(f"/jobs/{job_id}/artifacts").json()["data"]

        assert {entry["path"] for entry in listed} == {f"expert/{name}" for name in published}
        for entry in listed:
            content = published[entry["path"].removeprefix("expert/")]
            assert (entry["num_bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            assert client.get(f"/jobs/{job_id}/artifacts/{entry['path']}").content == content

    def test_paths_that_lead_elsewhere_are_not_found(
        self, client: httpx.Client, storage: Storage, job_id: str, published: dict[str, bytes], tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret.json"
        secret.write_text("{}")
        folder = next(storage.artifacts.iterdir())
        (folder / "link.json").symlink_to(secret)
        (folder / "optimizer.pt").write_bytes(b"a pickle")
        paths = (
            "expert/..%2f..%2f..%2fsecret.json", "..%2f..%2fsecret.json", "%2fetc%2fpasswd", "expert/link.json",
            "expert/optimizer.pt", "expert", "expert/", "expert/evidence", "expert//adapter_model.safetensors",
            "expert%00", "x" * 900, "expert/..%5c..%5csecret.json",
        )  # fmt: skip
        for path in paths:
            response = client.get(f"/jobs/{job_id}/artifacts/{path}")
            assert error_of(response, 404)["code"] == "artifact_not_found", path

    def test_of_a_failed_job_are_its_whole_checkpoints_without_pickles(
        self, client: httpx.Client, storage: Storage, job_id: str
    ) -> None:
        checkpoints = storage.job_folder(job_id) / "work" / "checkpoints"
        for name in ("checkpoint-10", "checkpoint-20"):
            (checkpoints / name).mkdir(parents=True)
            for file in ("adapter_model.safetensors", "rng_state.pth", "optimizer.pt"):
                (checkpoints / name / file).write_bytes(b"x")
        (checkpoints / "checkpoint-10" / "complete").touch()

        listed = client.get(f"/jobs/{job_id}/artifacts").json()["data"]

        assert [entry["path"] for entry in listed] == ["checkpoint/checkpoint-10/adapter_model.safetensors"]
