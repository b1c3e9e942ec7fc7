"""`/v1/fine_tuning/jobs` as OpenAI's own client speaks it, with a worker that the tests play."""

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared import job_events, job_lease
from services.shared.schemas.jobs import JobProgress
from services.shared.vocabulary import JobStatus
from tests.integration.router_service.conftest import Registry
from tests.integration.router_service.replica_double import ReplicaDouble

pytestmark = pytest.mark.integration

BASE = "double"
LINES = b'{"prompt": "2+2=", "completion": "4"}\n' * 20


@pytest.fixture(name="ai")
def openai_client(router_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(name="patient")
def client_that_retries(router_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=2) as client:
        yield client


@pytest.fixture(name="file_id")
def training_file(ai: openai.OpenAI) -> str:
    return ai.files.create(file=("train.jsonl", LINES), purpose="fine-tune").id


def hex_of(job_id: str) -> str:
    return job_id.removeprefix("ftjob-")


def run_to_the_end(sessions: sessionmaker[Session], registry: Registry, job_id: str, name: str) -> dict[str, str]:
    """Do what a worker does; returns the digests of what it made. Its version is told apart from the registry's."""
    own_id = f"job-{hex_of(job_id)}"
    final, early = (hashlib.sha256(text).hexdigest() for text in (b"final", b"early"))
    registry.expert(name, with_evidence=False)
    with sessions.begin() as session:
        job_lease.claim_job(session, own_id, owner="w", lease_s=60, max_attempts=3)
        progress = JobProgress(phase="training", step=30, total_steps=60, loss=2.0, seconds_left=90.0)
        job_lease.record_progress(session, own_id, owner="w", progress=progress)
        figures = {"step": 30, "loss": 2.5, "eval_loss": 2.75}
        job_events.add_event(session, own_id, "Step 30 of 60.", type="metrics", data=figures)
    with sessions.begin() as session:
        result = {
            "expert": name,
            "version": 7,
            "digest": final,
            "metrics": {"num_train_tokens": 1000, "stopped_early": False},
        }
        checkpoints = [
            {"step": 30, "digest": early, "loss": 2.5, "eval_loss": 2.75, "created_at": 1_700_000_000},
            {"step": 60, "digest": final, "loss": None, "eval_loss": 2.25, "created_at": 1_700_000_060},
        ]
        job_lease.record_checkpoints(session, own_id, owner="w", checkpoints=checkpoints)
        job_lease.finish_job(session, own_id, owner="w", status=JobStatus.SUCCEEDED, result=result)
    return {"final": final, "early": early}


class TestCreate:
    def test_what_is_asked_becomes_an_expert_job(self, ai: openai.OpenAI, client: httpx.Client, file_id: str) -> None:
        made = ai.fine_tuning.jobs.create(
            model=BASE,
            training_file=file_id,
            validation_file=file_id,
            suffix="My Sums!",
            seed=7,
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 2.5}
                },
            },
            metadata={"team": "a"},
        )

        job = client.get(f"/jobs/job-{hex_of(made.id)}").json()
        assert (job["kind"], job["status"]) == ("expert", "queued")
        assert (job["spec"]["name"], job["spec"]["training_file"]) == ("my-sums", file_id)
        used = job["spec"]["hyperparameters"]
        assert (used["num_epochs"], used["batch_size"], used["seed"]) == (2.0, 8, 7)
        assert used["learning_rate"] == pytest.approx(5e-4)
        assert used["completion_only_loss"] is True
        assert (made.object, made.status, made.model, made.seed) == ("fine_tuning.job", "queued", BASE, 7)
        assert (made.training_file, made.validation_file, made.fine_tuned_model) == (file_id, file_id, None)
        assert made.hyperparameters.model_dump() == {
            "n_epochs": 2,
            "batch_size": 8,
            "learning_rate_multiplier": 2.5,
        }
        assert made.method is not None
        assert made.metadata == {"team": "a"}
        assert ai.fine_tuning.jobs.retrieve(made.id) == made

    def test_the_older_place_of_hyperparameters_counts_too(self, ai: openai.OpenAI, file_id: str) -> None:
        made = ai.fine_tuning.jobs.create(
            model="base", training_file=file_id, hyperparameters={"n_epochs": 4, "batch_size": "auto"}
        )

        assert made.hyperparameters.n_epochs == 4

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"training_file": "file-abc123"}, "training_file"),
            ({"suffix": "!!"}, "suffix"),
            ({"suffix": "base"}, "suffix"),
            ({"suffix": "x" * 65}, "suffix"),
            ({"seed": -1}, "seed"),
            ({"method": {"type": "dpo"}}, "method.type"),
            ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}}, None),
            ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
            ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_cannot_be_done_is_refused_by_name(
        self, ai: openai.OpenAI, client: httpx.Client, file_id: str, asked: dict[str, Any], param: str | None
    ) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            ai.fine_tuning.jobs.create(**{"model": BASE, "training_file": file_id, **asked})

        assert param is None or refused.value.param == param
        assert client.get("/jobs").json()["data"] == []

    def test_only_the_base_model_is_fine_tuned(self, three_experts: str, ai: openai.OpenAI, file_id: str) -> None:
        for model in ("gpt-4o-mini", "adaptive-moe", f"{BASE}:math"):
            with pytest.raises(openai.NotFoundError) as refused:
                ai.fine_tuning.jobs.create(model=model, training_file=file_id)
            assert refused.value.code == "model_not_found"

    def test_a_bad_line_is_told_by_its_number_and_no_job_is_made(self, ai: openai.OpenAI) -> None:
        bad = ai.files.create(file=("bad.jsonl", LINES + b"{oops"), purpose="fine-tune").id

        with pytest.raises(openai.UnprocessableEntityError) as refused:
            ai.fine_tuning.jobs.create(model=BASE, training_file=bad)

        assert "bad.jsonl line 21" in refused.value.message
        assert refused.value.param == "training_file"
        assert list(ai.fine_tuning.jobs.list()) == []


class TestLife:
    def test_jobs_are_listed_newest_first_page_by_page_and_by_metadata(self, ai: openai.OpenAI, file_id: str) -> None:
        ids = [
            ai.fine_tuning.jobs.create(
                model=BASE, training_file=file_id, metadata={"team": "a" if number % 2 else "b", "n": str(number)}
            ).id
            for number in range(5)
        ]

        assert [job.id for job in ai.fine_tuning.jobs.list(limit=2)] == ids[::-1]
        assert [job.id for job in ai.fine_tuning.jobs.list(metadata={"team": "a"})] == [ids[3], ids[1]]
        assert [job.id for job in ai.fine_tuning.jobs.list(metadata={"team": "b", "n": "4"})] == [ids[4]]

    def test_other_jobs_are_no_fine_tuning_jobs(
        self, three_experts: str, ai: openai.OpenAI, client: httpx.Client
    ) -> None:
        router_job = client.post("/jobs", json={"kind": "router"}).json()["id"]

        assert list(ai.fine_tuning.jobs.list()) == []
        for name in (f"ft{router_job}", router_job, "ftjob-nothing"):
            with pytest.raises(openai.NotFoundError) as missing:
                ai.fine_tuning.jobs.retrieve(name)
            assert missing.value.code == "fine_tuning_job_not_found"

    def test_a_job_is_cancelled_once_and_the_second_time_is_not_retried(
        self, patient: openai.OpenAI, file_id: str
    ) -> None:
        job_id = patient.fine_tuning.jobs.create(model=BASE, training_file=file_id).id

        assert patient.fine_tuning.jobs.cancel(job_id).status == "cancelled"
        with pytest.raises(openai.BadRequestError) as refused:
            patient.fine_tuning.jobs.cancel(job_id)

        assert refused.value.code == "job_is_final"

    def test_a_job_rests_while_it_is_paused(self, patient: openai.OpenAI, file_id: str) -> None:
        job_id = patient.fine_tuning.jobs.create(model=BASE, training_file=file_id).id

        paused = patient.fine_tuning.jobs.pause(job_id)
        resumed = patient.fine_tuning.jobs.resume(job_id)
        with pytest.raises(openai.BadRequestError) as refused:
            patient.fine_tuning.jobs.resume(job_id)

        assert (paused.status, resumed.status) == ("paused", "queued")
        assert refused.value.code == "job_not_paused"

    def test_a_claimed_job_validates_its_files_and_then_runs(
        self, ai: openai.OpenAI, sessions: sessionmaker[Session], file_id: str
    ) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id).id
        own_id = f"job-{hex_of(job_id)}"
        seen = [ai.fine_tuning.jobs.retrieve(job_id).status]

        with sessions.begin() as session:
            job_lease.claim_job(session, own_id, owner="w", lease_s=60, max_attempts=3)
        seen.append(ai.fine_tuning.jobs.retrieve(job_id).status)
        with sessions.begin() as session:
            job_lease.begin_work(session, own_id, owner="w")
        seen.append(ai.fine_tuning.jobs.retrieve(job_id).status)

        assert seen == ["queued", "validating_files", "running"]

    def test_a_failed_job_says_why(self, ai: openai.OpenAI, sessions: sessionmaker[Session], file_id: str) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id).id
        error = {"type": "server_error", "code": "training_diverged", "message": "Try a lower learning_rate."}
        with sessions.begin() as session:
            job_lease.claim_job(session, f"job-{hex_of(job_id)}", owner="w", lease_s=60, max_attempts=3)
            job_lease.finish_job(session, f"job-{hex_of(job_id)}", owner="w", status=JobStatus.FAILED, error=error)

        job = ai.fine_tuning.jobs.retrieve(job_id)

        assert job.status == "failed"
        assert job.finished_at is not None
        assert job.error is not None
        assert (job.error.code, job.error.message) == ("training_diverged", "Try a lower learning_rate.")

    def test_events_come_newest_first_with_openais_names_of_figures(
        self, ai: openai.OpenAI, sessions: sessionmaker[Session], registry: Registry, file_id: str
    ) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id, suffix="sums").id
        run_to_the_end(sessions, registry, job_id, "sums")

        events = list(ai.fine_tuning.jobs.list_events(job_id, limit=2))

        assert [event.message for event in events] == [
            "The job succeeded.",
            "Step 30 of 60.",
            "Attempt 1 started.",
            "The job is queued.",
        ]
        assert [event.type for event in events] == ["message", "metrics", "message", "message"]
        assert events[1].data == {"step": 30, "train_loss": 2.5, "valid_loss": 2.75}
        with pytest.raises(openai.BadRequestError):
            ai.fine_tuning.jobs.list_events(job_id, after="17")


class TestFineTunedModels:
    def test_what_a_job_made_answers_under_its_name_at_once(
        self,
        ai: openai.OpenAI,
        sessions: sessionmaker[Session],
        registry: Registry,
        double: ReplicaDouble,
        file_id: str,
    ) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id, suffix="sums").id
        digests = run_to_the_end(sessions, registry, job_id, "sums")
        registry.expert("sums", with_evidence=False)  # a newer version does not change what the name stands for

        job = ai.fine_tuning.jobs.retrieve(job_id)
        assert job.status == "succeeded"
        assert job.fine_tuned_model == f"ft:{BASE}:sums:{hex_of(job_id)[:12]}"
        assert job.trained_tokens == 3000
        completion = ai.completions.create(model=job.fine_tuned_model, prompt="2+2=", max_tokens=2)
        chat = ai.chat.completions.create(
            model=job.fine_tuned_model, messages=[{"role": "user", "content": "2+2="}], max_tokens=2
        )

        assert completion.model == chat.model == job.fine_tuned_model
        for request in double.requests[-2:]:
            [expert] = request.plan.experts
            assert (expert.name, expert.version, expert.digest) == ("sums", 7, digests["final"])
            assert request.plan.weights == {"sums": 1.0}

    def test_checkpoints_answer_too_the_last_first(
        self,
        ai: openai.OpenAI,
        sessions: sessionmaker[Session],
        registry: Registry,
        double: ReplicaDouble,
        file_id: str,
    ) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id, suffix="sums").id
        assert ai.fine_tuning.jobs.checkpoints.list(job_id).data == []
        digests = run_to_the_end(sessions, registry, job_id, "sums")

        pages = ai.fine_tuning.jobs.checkpoints.list(job_id, limit=1)
        checkpoints = list(pages)

        assert pages.has_more is True
        assert [checkpoint.step_number for checkpoint in checkpoints] == [60, 30]
        early = checkpoints[1]
        assert early.fine_tuned_model_checkpoint == f"ft:{BASE}:sums:{hex_of(job_id)[:12]}:ckpt-step-30"
        assert (early.metrics.train_loss, early.metrics.valid_loss) == (2.5, 2.75)
        assert early.fine_tuning_job_id == job_id
        ai.completions.create(model=early.fine_tuned_model_checkpoint, prompt="2+2=", max_tokens=2)
        assert double.requests[-1].plan.experts[0].digest == digests["early"]

    @pytest.mark.parametrize("status", [None, JobStatus.FAILED, JobStatus.CANCELLED])
    def test_checkpoints_answer_while_the_training_runs_and_after_it_failed(
        self,
        ai: openai.OpenAI,
        sessions: sessionmaker[Session],
        double: ReplicaDouble,
        file_id: str,
        status: JobStatus | None,
    ) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id, suffix="unheard-of").id
        own_id, digest = f"job-{hex_of(job_id)}", hashlib.sha256(b"half-way").hexdigest()
        kept = {"step": 30, "digest": digest, "loss": 2.5, "eval_loss": 2.75, "created_at": 1_700_000_000}
        with sessions.begin() as session:
            job_lease.claim_job(session, own_id, owner="w", lease_s=60, max_attempts=3)
            job_lease.record_checkpoints(session, own_id, owner="w", checkpoints=[kept])
            if status is not None:
                error = {"type": "server_error", "code": "disk_full", "message": "Make room."}
                job_lease.finish_job(session, own_id, owner="w", status=status, error=error)

        [checkpoint] = ai.fine_tuning.jobs.checkpoints.list(job_id).data
        ai.completions.create(model=checkpoint.fine_tuned_model_checkpoint, prompt="2+2=", max_tokens=2)

        assert (checkpoint.step_number, checkpoint.created_at) == (30, 1_700_000_000)
        [expert] = double.requests[-1].plan.experts
        assert (expert.name, expert.version, expert.digest) == ("unheard-of", 1, digest)
        assert ai.fine_tuning.jobs.retrieve(job_id).fine_tuned_model is None

    def test_names_that_no_job_stands_behind_are_not_found(
        self,
        ai: openai.OpenAI,
        client: httpx.Client,
        sessions: sessionmaker[Session],
        registry: Registry,
        file_id: str,
    ) -> None:
        job_id = ai.fine_tuning.jobs.create(model=BASE, training_file=file_id, suffix="sums").id
        good = f"ft:{BASE}:sums:{hex_of(job_id)[:12]}"
        with pytest.raises(openai.NotFoundError):
            ai.completions.create(model=good, prompt="2+2=")
        run_to_the_end(sessions, registry, job_id, "sums")
        wrong = [f"ft:{BASE}:sums:{'0' * 12}", f"{good}:ckpt-step-31", f"ft:other:sums:{hex_of(job_id)[:12]}", "ft:"]
        for model in wrong:
            with pytest.raises(openai.NotFoundError) as missing:
                ai.completions.create(model=model, prompt="2+2=")
            assert missing.value.code == "model_not_found"
        ai.completions.create(model=good, prompt="2+2=", max_tokens=1)

        client.delete("/experts/sums").raise_for_status()

        with pytest.raises(openai.NotFoundError):
            ai.completions.create(model=good, prompt="2+2=")
