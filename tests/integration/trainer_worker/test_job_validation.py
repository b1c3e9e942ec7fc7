"""What a worker looks at before a job runs: its files, its base model, the disk."""

import json
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from services.shared.base_shape import BaseShape
from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.job_control import request_cancel, request_pause
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.modeling.base_fingerprint import base_fingerprint
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.image_cooperation import DigitsImages, ImageCooperationJobSpec
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.job_validation import required_bytes, validate_job
from services.trainer_worker.kinds import Handler, Publish
from services.trainer_worker.progress import TrainingProgress, TrainingStopped

pytestmark = pytest.mark.integration

DiskUsage = namedtuple("DiskUsage", "total used free")
GOOD = "".join(
    json.dumps({"prompt": f"{number} + 1 =", "completion": f" {number + 1}"}) + "\n" for number in range(600)
)
Run = Callable[..., JobRow]
Upload = Callable[[str, str], str]
OnPhase = Callable[[str, JobContext], None]


@pytest.fixture
def submitted(sessions: sessionmaker[Session]) -> Callable[..., str]:
    """A queued job on a file; its id."""

    def submitted(file_id: str, *, fingerprint: str | None = None) -> str:
        with sessions.begin() as session:
            spec = ExpertJobSpec(name="sums", training_file=file_id)
            return create_job(session, spec, base_fingerprint=fingerprint).id

    return submitted


def publish_nothing(_: Session) -> dict[str, Any]:
    return {}


def work(_: JobContext) -> Publish:
    return publish_nothing


@pytest.fixture
def run(runner: JobRunner, sessions: sessionmaker[Session]) -> Run:
    """One attempt at a job; `on_phase` hears of every phase of its validation, `handler` is what it would do."""

    def run(job_id: str, *, on_phase: OnPhase = lambda *_: None, handler: Handler = work) -> JobRow:
        def validate(context: JobContext) -> None:
            def report(progress: TrainingProgress) -> None:
                context.report(progress)
                on_phase(progress.phase, context)

            validate_job(replace(context, report=report))

        replace(runner, handlers=lambda _: handler, validate=validate).run(job_id)
        with sessions() as session:
            return find_job(session, job_id)

    return run


def statuses(sessions: sessionmaker[Session], job_id: str) -> list[str]:
    with sessions() as session:
        return [event.data["status"] for event in list_events(session, job_id) if event.type == "status"]


def test_a_job_is_told_to_be_validating_before_it_runs(
    run: Run, submitted: Callable[..., str], upload: Upload, sessions: sessionmaker[Session], settings: Settings
) -> None:
    job_id = submitted(upload("sums.jsonl", GOOD), fingerprint=base_fingerprint(settings.base_model))
    phases: list[str] = []

    def on_phase(phase: str, _: JobContext) -> None:
        phases.append(phase)
        with sessions() as session:
            assert find_job(session, job_id).status == JobStatus.VALIDATING

    assert run(job_id, on_phase=on_phase).status == JobStatus.SUCCEEDED
    assert statuses(sessions, job_id) == ["queued", "validating", "running", "succeeded"]
    assert phases[-2:] == ["validating training_file", "reading training_file"]


class TestRefuses:
    def test_a_file_with_a_bad_line_naming_it(
        self, run: Run, submitted: Callable[..., str], upload: Upload, sessions: sessionmaker[Session]
    ) -> None:
        job_id = submitted(upload("sums.jsonl", GOOD + '{"prompt": "no completion"}\n'))

        row = run(job_id)

        assert row.error["code"] == "invalid_dataset"
        assert row.error["param"] == "training_file"
        assert "line 601" in row.error["message"]
        assert statuses(sessions, job_id) == ["queued", "validating", "failed"]

    def test_a_file_whose_bytes_have_changed(
        self, run: Run, submitted: Callable[..., str], upload: Upload, settings: Settings
    ) -> None:
        file_id = upload("sums.jsonl", GOOD)
        Storage(settings.storage.root).upload(file_id).write_text(GOOD.replace("7", "8"))

        row = run(submitted(file_id))

        assert row.error["code"] == "file_changed"
        assert "upload the file again" in row.error["message"]

    def test_a_file_that_is_gone(
        self, run: Run, submitted: Callable[..., str], upload: Upload, settings: Settings
    ) -> None:
        file_id = upload("sums.jsonl", GOOD)
        Storage(settings.storage.root).upload(file_id).unlink()

        assert run(submitted(file_id)).error["code"] == "file_missing"

    def test_another_base_model_than_the_one_it_was_submitted_for(
        self, run: Run, submitted: Callable[..., str], upload: Upload
    ) -> None:
        row = run(submitted(upload("sums.jsonl", GOOD), fingerprint="0" * 64))

        assert row.error["code"] == "base_model_differs"
        assert "0000000000000000" in row.error["message"]

    def test_a_disk_without_room_for_its_checkpoints(
        self, run: Run, submitted: Callable[..., str], upload: Upload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**12, 10**12 - 10**6, 10**6))

        row = run(submitted(upload("sums.jsonl", GOOD)))

        assert row.error["code"] == "disk_full"
        assert "Make room" in row.error["message"]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_what_needs_a_gpu_where_there_is_none(
        self, run: Run, upload: Upload, sessions: sessionmaker[Session]
    ) -> None:
        numbers = ExpertHyperparameters(quantization="4bit")
        with sessions.begin() as session:
            spec = ExpertJobSpec(name="sums", training_file=upload("sums.jsonl", GOOD), hyperparameters=numbers)
            job_id = create_job(session, spec).id

        row = run(job_id)

        assert row.error["param"] == "hyperparameters.quantization"
        assert "queue 'gpu'" in row.error["message"]
        assert statuses(sessions, job_id) == ["queued", "validating", "failed"]

    def test_a_rank_that_could_not_be_served(self, run: Run, upload: Upload, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            spec = ExpertCreationJobSpec(
                name="sums",
                training_files=(upload("sums.jsonl", GOOD),),
                complex=True,
                hyperparameters=ExpertHyperparameters(rank=256),
            )
            job_id = create_job(session, spec).id

        row = run(job_id)

        assert (row.error["code"], row.error["param"]) == ("rank_too_high", "hyperparameters.rank")
        assert "rank 264" in row.error["message"]

    def test_a_specification_of_another_version(
        self, run: Run, submitted: Callable[..., str], upload: Upload, sessions: sessionmaker[Session]
    ) -> None:
        job_id = submitted(upload("sums.jsonl", GOOD))
        with sessions.begin() as session:
            row = find_job(session, job_id)
            row.spec = {**row.spec, "teleport": True}

        assert run(job_id).error["code"] == "invalid_specification"


class TestWhileValidating:
    def test_cancelling_ends_the_job(
        self, run: Run, submitted: Callable[..., str], upload: Upload, sessions: sessionmaker[Session]
    ) -> None:
        job_id = submitted(upload("sums.jsonl", GOOD))

        def cancel(phase: str, context: JobContext) -> None:
            if phase == "reading training_file":
                with sessions.begin() as session:
                    assert request_cancel(session, job_id).status == JobStatus.VALIDATING
                wait_to_be_stopped(context)

        assert run(job_id, on_phase=cancel).status == JobStatus.CANCELLED
        assert statuses(sessions, job_id) == ["queued", "validating", "cancelled"]

    def test_pausing_lets_go_of_it(
        self, run: Run, submitted: Callable[..., str], upload: Upload, sessions: sessionmaker[Session]
    ) -> None:
        job_id = submitted(upload("sums.jsonl", GOOD))

        def pause(phase: str, context: JobContext) -> None:
            if phase == "validating training_file":
                with sessions.begin() as session:
                    request_pause(session, job_id)
                wait_to_be_stopped(context)

        row = run(job_id, on_phase=pause)

        assert (row.status, row.attempt, row.owner) == (JobStatus.PAUSED, 0, None)


def test_the_next_attempt_does_not_read_the_same_bytes_line_by_line_again(
    run: Run, submitted: Callable[..., str], upload: Upload, sessions: sessionmaker[Session]
) -> None:
    job_id = submitted(upload("sums.jsonl", GOOD))

    def pause(context: JobContext) -> Publish:
        with sessions.begin() as session:
            request_pause(session, job_id)
        wait_to_be_stopped(context)
        raise TrainingStopped

    phases: list[str] = []
    assert run(job_id, handler=pause).status == JobStatus.PAUSED
    with sessions.begin() as session:
        find_job(session, job_id).status = JobStatus.QUEUED.value

    assert run(job_id, on_phase=lambda phase, _: phases.append(phase)).status == JobStatus.SUCCEEDED
    assert phases[-1] == "validating training_file"


def test_disk_is_reckoned_by_rank_and_only_for_what_makes_checkpoints() -> None:
    shape = BaseShape.of_config({"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 9})
    low, high = (
        required_bytes(
            ExpertJobSpec(name="a", training_file="file-" + "0" * 32, hyperparameters=ExpertHyperparameters(rank=rank)),
            shape,
        )
        for rank in (8, 64)
    )
    pictures = required_bytes(ImageCooperationJobSpec(data=DigitsImages()), None)

    parameters = shape.num_lora_parameters(64) - shape.num_lora_parameters(8)
    assert high - low > 4 * 3 * parameters * 3
    assert 0 < pictures < low


def wait_to_be_stopped(context: JobContext) -> None:
    pause = threading.Event()
    while not context.should_stop():
        pause.wait(0.01)
