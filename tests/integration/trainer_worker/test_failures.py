"""Real failures in the middle of a training: what its owner is told, and that the last good checkpoint is kept.

Each job runs in a process of its own, because limits on files and memory are a process's.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import ExpertVersionRow, JobRow
from services.shared.jobs import create_job, find_job
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SMALL = ExpertHyperparameters(
    rank=4, max_steps=60, eval_steps=5, batch_size=2, max_length=32, early_stopping_patience=0
)
RUN = """
import sys
from dataclasses import replace
import resource
from services.shared.config import Settings
from services.shared.database.session import open_engine, session_factory
from services.shared.storage import Storage
from services.shared.telemetry import configure_logging
from services.trainer_worker import expert_job
from services.trainer_worker.job_runner import JobRunner

settings = Settings()
configure_logging(settings.telemetry, service="test")
limit, at_step, job_id = getattr(resource, sys.argv[1], None), int(sys.argv[2]), sys.argv[3]

def used_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()

def limited(context):
    def report(progress):
        if limit is not None and progress.phase == "training" and progress.step >= at_step:
            room = 2000 if limit == resource.RLIMIT_FSIZE else used_bytes() + 4 * 1024**2
            resource.setrlimit(limit, (room, resource.RLIM_INFINITY))
        context.report(progress)
    return expert_job.run_expert_job(replace(context, report=report))

engine = open_engine(settings.database, application_name="test")
JobRunner(
    settings=settings, sessions=session_factory(engine), storage=Storage(settings.storage.root), owner="this-test",
    shutting_down=lambda: False, handlers=lambda kind: limited,
).run(job_id)
"""
Fail = Callable[..., JobRow]


@pytest.fixture
def fail(
    settings: Settings,
    sessions: sessionmaker[Session],
    environment: dict[str, str],
    word_problems: str,
) -> Fail:
    """Run an expert job under a limit that sets in at a step; its row."""

    def fail(hyperparameters: ExpertHyperparameters, *, limit: str = "none", at_step: int = 0) -> JobRow:
        spec = ExpertJobSpec(name="math", training_file=word_problems, hyperparameters=hyperparameters)
        with sessions.begin() as session:
            job_id = create_job(session, spec).id
        command = [sys.executable, "-c", RUN, limit, str(at_step), job_id]
        subprocess.run(
            command, env=os.environ | environment | {"AMOE_TELEMETRY__FORMAT": "json"}, check=True, timeout=240
        )
        with sessions() as session:
            assert session.query(ExpertVersionRow).count() == 0
            return find_job(session, job_id)

    return fail


def kept_steps(row: JobRow, settings: Settings) -> list[int]:
    """Steps of the checkpoints on disk; each holds an adapter that can be read."""
    checkpoints = Storage(settings.storage.root).job_folder(row.id) / "work" / "checkpoints"
    steps = []
    for checkpoint in checkpoints.glob("checkpoint-*"):
        with safe_open(checkpoint / "adapter_model.safetensors", framework="numpy") as tensors:
            assert list(tensors.keys())
        steps.append(int(checkpoint.name.rpartition("-")[2]))
    return steps


def test_a_full_disk_is_named_and_the_checkpoint_before_is_kept(fail: Fail, settings: Settings) -> None:
    row = fail(SMALL, limit="RLIMIT_FSIZE", at_step=12)

    assert (row.status, row.error["code"]) == (JobStatus.FAILED, "disk_full")
    assert "Make room" in row.error["message"]
    assert kept_steps(row, settings) == [10]
    assert f"checkpoint of step 10 is kept: GET /jobs/{row.id}/artifacts" in row.error["message"]


def test_too_little_memory_is_named_with_what_needs_less(fail: Fail, settings: Settings) -> None:
    large = SMALL.model_copy(
        update={"batch_size": 16, "max_length": 256, "packing": False, "eval_steps": 1, "max_steps": 10}
    )

    row = fail(large, limit="RLIMIT_AS", at_step=2)

    assert (row.status, row.error["code"]) == (JobStatus.FAILED, "out_of_memory")
    assert "smaller batch_size" in row.error["message"]
    assert len(kept_steps(row, settings)) == 1


def test_a_loss_that_is_not_finite_is_named_with_the_learning_rate_and_the_checkpoint_before_is_kept(
    fail: Fail, settings: Settings
) -> None:
    # The rate climbs step by step, so that there is a checkpoint before it is too high.
    climbing = SMALL.model_copy(
        update={"learning_rate": 1.0, "alpha": 1e5, "warmup_ratio": 1.0, "max_steps": 30, "eval_steps": 1}
    )

    row = fail(climbing)

    assert row.status == JobStatus.FAILED
    assert row.error["code"] in {"loss_not_finite", "training_diverged"}
    assert "lower learning_rate" in row.error["message"]
    assert len(kept_steps(row, settings)) == 1


def test_a_file_damaged_after_it_was_accepted_is_named_with_the_line(
    fail: Fail, settings: Settings, word_problems: str
) -> None:
    path: Path = Storage(settings.storage.root).upload(word_problems)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[29] = b'{"prompt": "\xff\xfe", "completion": "?"}\n'
    path.write_bytes(b"".join(lines))

    row = fail(SMALL)

    assert (row.status, row.error["code"]) == (JobStatus.FAILED, "invalid_dataset")
    assert "problems.jsonl line 30" in row.error["message"]
