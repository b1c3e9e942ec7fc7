"""Trace jobs: native models and the demo's mixture, interrupted, cancelled, refused, in the requirements' layout."""

import json
import tarfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.jobs import create_job, find_job
from services.shared.schemas.trace import TraceJobSpec
from services.shared.storage import Storage
from services.shared.traces_registry import create_trace, find_trace, trace_id_of
from services.shared.vocabulary import JobStatus, TraceStatus
from services.traces.analysis import read_overview
from services.traces.choices import Phase
from services.traces.table import Trace
from services.trainer_worker.job_runner import JobRunner
from tests.unit.trainer_worker.tracing.native_models import save_tiny_model

PROMPTS: list[dict[str, Any]] = [
    {"id": f"{domain}-{number}", "domain": domain, "prompt": f"{text} {number}", "n_predict": 6}
    for domain, text in (("code", "def f(x): return"), ("math", "1 + 2 ="))
    for number in range(3)
]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With a folder of native models, and one model in it."""
    save_tiny_model(tmp_path / "models" / "tiny-mixtral")
    trainer = settings.trainer.model_copy(update={"traced_models": tmp_path / "models"})
    return settings.model_copy(update={"trainer": trainer})


@pytest.fixture
def submit_trace(sessions: sessionmaker[Session]) -> Callable[..., str]:
    """Make the rows of job and trace as the router service does; returns the job's id."""

    def submit(**fields: Any) -> str:
        spec = TraceJobSpec.model_validate({"kind": "trace", "batch_size": 2} | fields)
        with sessions.begin() as session:
            job_id = create_job(session, spec).id
            create_trace(session, job_id=job_id, name=spec.named_trace())
        return job_id

    return submit


@pytest.fixture
def row_of(sessions: sessionmaker[Session]) -> Callable[[str], JobRow]:
    def row_of(job_id: str) -> JobRow:
        with sessions() as session:
            return find_job(session, job_id)

    return row_of


def result_of(row: JobRow) -> dict[str, Any]:
    assert row.status == JobStatus.SUCCEEDED, row.error
    assert row.result is not None
    return row.result


class TestNativeModel:
    def test_becomes_a_trace_with_its_analysis(
        self, submit_trace: Callable[..., str], runner: JobRunner, row_of: Any, sessions: Any, settings: Settings
    ) -> None:
        job_id = submit_trace(model="tiny-mixtral", prompts=PROMPTS, name="first")

        runner.run(job_id)

        result = result_of(row_of(job_id))
        with sessions() as session:
            row = find_trace(session, trace_id_of(job_id))
        storage = Storage(settings.storage.root)
        assert row.digest is not None
        assert row.analysis_digest is not None
        trace = Trace(storage.artifact(row.digest))
        assert (row.name, row.status, row.source) == ("first", TraceStatus.READY, "native")
        assert result["trace"] == row.id
        assert result["num_sequences"] == len(PROMPTS)
        assert trace.description.model == "tiny-mixtral"
        assert trace.description.domains == ("code", "math")
        assert trace.layers == [0, 1, 2]
        assert [(one.domain, one.prompt) for one in trace.sequences] == [(p["domain"], p["id"]) for p in PROMPTS]
        layer = trace.layer(2)
        assert (layer.num_experts, layer.experts.shape[1]) == (8, 2)
        assert layer.of(Phase.PROMPT).num_tokens == sum(len(prompt["prompt"]) for prompt in PROMPTS)
        assert 0 < layer.of(Phase.GENERATED).num_tokens <= 6 * len(PROMPTS)
        assert read_overview(storage.artifact(row.analysis_digest)).layers == (0, 1, 2)
        lines = (trace.folder / "texts.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == [prompt["prompt"] for prompt in PROMPTS]

    def test_goes_on_after_an_interruption_with_the_prompts_that_are_left(
        self, submit_trace: Callable[..., str], runner: JobRunner, row_of: Any, sessions: Any, settings: Settings
    ) -> None:
        whole_id, broken_id = (submit_trace(model="tiny-mixtral", prompts=PROMPTS, seed=5) for _ in range(2))
        runner.run(whole_id)
        batches = Storage(settings.storage.root).job_folder(broken_id) / "work" / "batches"
        written: dict[str, set[int]] = defaultdict(set)

        def look() -> None:
            for file in batches.glob("*.npz"):
                written[file.name].add(file.stat().st_mtime_ns)

        def after_a_batch() -> bool:
            look()
            return bool(written)

        def never() -> bool:
            look()
            return False

        replace(runner, shutting_down=after_a_batch).run(broken_id)
        assert row_of(broken_id).status == JobStatus.QUEUED
        assert len(written) == 1
        replace(runner, shutting_down=never).run(broken_id)

        result_of(row_of(broken_id))
        assert {len(times) for times in written.values()} == {1}
        with sessions() as session:
            assert (
                find_trace(session, trace_id_of(whole_id)).digest == find_trace(session, trace_id_of(broken_id)).digest
            )

    def test_in_the_requirements_layout_is_a_tarball_beside_it(
        self, submit_trace: Callable[..., str], runner: JobRunner, row_of: Any, settings: Settings
    ) -> None:
        job_id = submit_trace(model="tiny-mixtral", prompts=PROMPTS, layout="directory")

        runner.run(job_id)

        artifacts = result_of(row_of(job_id))["artifacts"]
        folder = Storage(settings.storage.root).artifact(artifacts["directory"])
        with tarfile.open(folder / "expert-analysis.tar.gz") as tar:
            names = tar.getnames()
        assert "expert-analysis/domain-1-code/traces/token-00000.json" in names
        assert "expert-analysis/domain-2-math/math-2/traces/token-00003.json" in names
        assert "expert-analysis/summary.json" in names

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"model": "../elsewhere"}, "model_path_forbidden"),
            ({"model": "none"}, "model_not_found"),
            ({"model": "tiny-mixtral", "max_tokens": 4000}, "prompt_too_long"),
        ],
    )
    def test_that_cannot_be_traced_fails_with_a_reason(
        self, submit_trace: Callable[..., str], runner: JobRunner, row_of: Any, sessions: Any, tmp_path: Path,
        fields: dict[str, Any], code: str,
    ) -> None:  # fmt: skip
        (tmp_path / "elsewhere").mkdir()
        job_id = submit_trace(prompts=PROMPTS, **fields)

        runner.run(job_id)

        assert row_of(job_id).status == JobStatus.FAILED
        assert row_of(job_id).error["code"] == code
        with sessions() as session:
            assert find_trace(session, trace_id_of(job_id)).status == TraceStatus.FAILED


class TestPromptsFile:
    def test_is_read_as_the_requirements_have_it(
        self, submit_trace: Callable[..., str], runner: JobRunner, row_of: Any, upload: Callable[[str, str], str]
    ) -> None:
        content = {"experiment_name": "mine", "description": "two", "prompts": PROMPTS[2:4], "version": 1}
        job_id = submit_trace(model="tiny-mixtral", prompts_file=upload("prompts.json", json.dumps(content)))

        runner.run(job_id)

        assert result_of(row_of(job_id))["num_sequences"] == 2
        assert np.isfinite(result_of(row_of(job_id))["num_tokens"])
