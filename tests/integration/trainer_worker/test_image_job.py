"""Image experiments as jobs: from the row to the artifact, in this process."""

import hashlib
import itertools
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import FileRow, JobRow
from services.shared.job_control import request_cancel
from services.shared.jobs import create_job, find_job
from services.shared.schemas.image_cooperation import ImageCooperationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.storage import Storage
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Handler, handler_of
from tests.unit.trainer_worker.image_cooperation.pictures import binary_batch, made_up, python_batch, write_parquet

pytestmark = pytest.mark.integration


@pytest.fixture
def run(run_job: Callable[[JobSpecBase], JobRow]) -> Callable[..., JobRow]:
    """Submit a job of these fields, run it and return its row."""
    return lambda **fields: run_job(ImageCooperationJobSpec.model_validate(fields))


@pytest.fixture
def upload_bytes(sessions: sessionmaker[Session], settings: Settings) -> Callable[[str, bytes], str]:
    """Store a file as the router service would; returns its id."""

    def upload(filename: str, content: bytes) -> str:
        file_id = f"file-{uuid.uuid4().hex}"
        Storage(settings.storage.root).upload(file_id).write_bytes(content)
        with sessions.begin() as session:
            row = FileRow(
                id=file_id,
                purpose="user_data",
                filename=filename,
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
            session.add(row)
        return file_id

    return upload


@pytest.fixture
def files(upload_bytes: Callable[[str, bytes], str], tmp_path: Path) -> dict[str, Any]:
    """Pictures in all three layouts together, as a job names them."""
    write_parquet(made_up(20, seed=2), tmp_path / "train.parquet")
    train = [
        upload_bytes("data_batch_1", python_batch(made_up(20))),
        upload_bytes("data_batch_2.bin", binary_batch(made_up(20, seed=1))),
        upload_bytes("train-00000-of-00001.parquet", (tmp_path / "train.parquet").read_bytes()),
    ]
    return {"source": "files", "train": train, "test": [upload_bytes("test_batch.bin", binary_batch(made_up(10)))]}


class TestImageJob:
    def test_on_digits_learns_and_leaves_its_report(self, run: Callable[..., JobRow], settings: Settings) -> None:
        row = run(num_epochs=4)

        assert (row.status, row.error) == ("succeeded", None)
        assert row.result is not None
        assert row.result["metrics"]["accuracy"] > 0.6
        artifact = Storage(settings.storage.root).artifact(row.result["artifacts"]["experiment"])
        epochs = [f"adjacency_matrix_epoch_{epoch}.png" for epoch in ("initial", 1, 2, 3, 4)]
        texts = ["report.md", "report.json", "routing_examples.jsonl", "team_stats.json"]
        assert {path.name for path in artifact.iterdir()} == {*epochs, *texts, "network.safetensors"}
        figures = json.loads((artifact / "report.json").read_text())
        assert figures["accuracy"] == row.result["metrics"]["accuracy"]
        assert (row.step, row.total_steps) == (4 * 23, 4 * 23)

    @pytest.mark.parametrize("setting", ["published", "strong"])
    def test_reads_uploaded_pictures_in_every_layout(
        self, run: Callable[..., JobRow], files: dict[str, Any], settings: Settings, setting: str
    ) -> None:
        row = run(setting=setting, data=files, num_epochs=1)

        assert (row.status, row.error) == ("succeeded", None)
        assert row.result is not None
        artifact = Storage(settings.storage.root).artifact(row.result["artifacts"]["experiment"])
        data = json.loads((artifact / "report.json").read_text())["data"]
        assert (data["train_images"], data["test_images"], data["image_shape"]) == (60, 10, [32, 32, 3])

    def test_with_a_pickle_that_is_a_program_fails_and_does_not_run_it(
        self,
        run: Callable[..., JobRow],
        files: dict[str, Any],
        upload_bytes: Callable[[str, bytes], str],
        tmp_path: Path,
    ) -> None:
        marker = tmp_path / "marker"
        program = b"\x80\x02cos\nsystem\nX" + len(f"touch {marker}").to_bytes(4, "little")
        hostile = upload_bytes("data_batch_1", program + f"touch {marker}".encode() + b"\x85R.")

        row = run(data={**files, "train": [hostile]})

        assert row.status == "failed"
        assert row.error is not None
        assert row.error["code"] == "forbidden_pickle"
        assert "data_batch_1 is refused: it asks for os.system" in row.error["message"]
        assert not marker.exists()

    def test_whose_file_is_gone_says_so(
        self, run: Callable[..., JobRow], files: dict[str, Any], settings: Settings
    ) -> None:
        Storage(settings.storage.root).upload(files["test"][0]).unlink()

        row = run(data=files)

        assert row.error is not None
        assert (row.status, row.error["code"]) == ("failed", "file_missing")

    def test_cancelled_in_the_middle_stops_at_a_step_and_leaves_no_checkpoint(
        self, runner: JobRunner, sessions: sessionmaker[Session], settings: Settings
    ) -> None:
        with sessions.begin() as session:
            job_id = create_job(session, ImageCooperationJobSpec(num_epochs=1000)).id

        def cancelled_once_trained(kind: Any) -> Handler:
            handler = handler_of(kind)

            def run(context: Any) -> Any:
                with sessions.begin() as session:
                    request_cancel(session, job_id)
                return handler(context)

            return run

        replace(runner, handlers=cancelled_once_trained).run(job_id)

        with sessions() as session:
            row = find_job(session, job_id)
        assert row.status == "cancelled"
        assert row.step < 23 * 1000
        assert not (runner.storage.root / "jobs" / job_id / "work").exists()

    def test_of_a_worker_that_shuts_down_ends_with_the_artifact_of_one_that_was_not_interrupted(
        self, run: Callable[..., JobRow], runner: JobRunner, sessions: sessionmaker[Session]
    ) -> None:
        fields = {"num_epochs": 3, "graph": "none"}
        asked = itertools.count()
        shut_down = replace(runner, shutting_down=lambda: next(asked) > 40)
        with sessions.begin() as session:
            job_id = create_job(session, ImageCooperationJobSpec.model_validate(fields)).id

        shut_down.run(job_id)
        with sessions() as session:
            handed_back = find_job(session, job_id)
        runner.run(job_id)
        with sessions() as session:
            resumed = find_job(session, job_id)

        assert (handed_back.status, handed_back.attempt) == ("queued", 0)
        assert 23 < handed_back.step < 3 * 23
        assert resumed.status == "succeeded"
        assert resumed.result is not None
        whole = run(**fields)
        assert whole.result is not None
        assert resumed.result["artifacts"] == whole.result["artifacts"]
