"""Cooperation graphs from the row to the report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.job_control import request_pause, resume_job
from services.shared.jobs import create_job, find_job
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.registry import find_release
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.cooperation_graph_job import run_cooperation_graph_job
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Publish
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.graph_report import GraphReport
from tests.integration.trainer_worker.studies.recipes import SMALL_GRAPH
from tests.integration.trainer_worker.studies.reports import report_of
from tests.integration.trainer_worker.studies.texts import upload_texts
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class TestCooperationGraph:
    def test_is_learned_beside_its_controls_and_reported(
        self, learn: Callable[..., JobRow], release: ReleaseRow, settings: Settings, sessions: sessionmaker[Session]
    ) -> None:
        row = learn(create_release=True, joint=("router", "experts"))

        assert row.status == JobStatus.SUCCEEDED, row.error
        folder, report = report_of(row, settings)
        names = [(one["name"], one["seed"]) for one in report["variants"]]
        assert names[:3] == [("no graph", 0), ("no graph, k=1", 0), ("no graph, k=2", 0)]
        trained = ("learned", "learned, k=1", "learned, k=2", "l1 5", "scalar", "joint", "joint without graph")
        assert set(names[3:]) == {(name, seed) for name in (*trained, "random", "shuffled") for seed in (0, 1)}
        assert set(report["gains_over"]) == {"no graph", "scalar", "random", "shuffled"}
        assert set(report["gains_at_top_k"]) == {"1", "2"}
        assert report["joint"]["parts"] == ["router", "experts"]
        assert len(report["adjacency_by_seed"]) == 2
        self.assert_a_strong_penalty_makes_exact_zeros(report)
        self.assert_shows_every_epoch(folder, report)
        graph = CooperationGraph.load(Storage(settings.storage.root).artifact(row.result["artifacts"]["graph"]))
        assert graph.experts == ("sums", "plays")
        np.testing.assert_allclose(graph.adjacency_EE, report["history"][-1], atol=1e-6)
        assert row.result["trained_on"] == release.id
        with sessions() as session:
            assert (session.query(ReleaseRow).count() == 2) is row.result["beats_controls"]

    def assert_a_strong_penalty_makes_exact_zeros(self, report: dict[str, Any]) -> None:
        assert all(one["sparsity"] == 1.0 for one in report["variants"] if one["name"] == "l1 5")
        assert all(one["gain"] == 0.0 for one in report["variants"] if one["name"] == "l1 5")

    def assert_shows_every_epoch(self, folder: Path, report: dict[str, Any]) -> None:
        pictures = ["adjacency_epoch_01.png", "adjacency_epoch_02.png", "adjacency_epoch_initial.png"]
        assert sorted(path.name for path in folder.glob("*.png")) == pictures
        assert len(report["history"]) == 3
        text = (folder / "report.md").read_text()
        assert "](adjacency_epoch_initial.png)" in text
        assert "](adjacency_epoch_02.png)" in text
        assert "router and experts with a graph, over router and experts without one" in text
        lines = [json.loads(line) for line in (folder / "routing_examples.jsonl").read_text().splitlines()]
        assert lines
        for line in lines:
            assert line["columns"] == ["sums", "plays", "base"]
            assert sum(line["weights"]) == pytest.approx(1.0, abs=1e-3)
            assert sum(line["with_graph"]) == pytest.approx(1.0, abs=1e-3)

    def test_makes_a_staged_release_once_it_beats_its_controls(
        self,
        learn: Callable[..., JobRow],
        release: ReleaseRow,
        sessions: sessionmaker[Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(GraphReport, "beats_controls", True)

        row = learn(create_release=True, l1_sweep=(), top_ks=(), seeds=(0,))

        assert row.result is not None, row.error
        with sessions() as session:
            made = find_release(session, int(row.result["release"].removeprefix("release-")))
        assert made.graph_digest == row.result["graph"]
        assert (made.status, made.router_digest) == ("staged", release.router_digest)
        assert made.content.experts == release.content.experts

    def test_goes_on_after_a_pause_to_the_same_graph(
        self,
        runner: JobRunner,
        learn: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        sessions: sessionmaker[Session],
    ) -> None:
        fields = {"l1_sweep": (), "top_ks": ()}
        uninterrupted = learn(**fields)
        spec = CooperationGraphJobSpec.model_validate({**SMALL_GRAPH, "training_files": held_out, **fields})
        with sessions.begin() as session:
            job_id = create_job(session, spec).id
        phases: list[str] = []

        def pausing(context: JobContext) -> Publish:
            def report(progress: TrainingProgress) -> None:
                if progress.phase == "graph: scalar" and "graph: scalar" not in phases:
                    with sessions.begin() as session:
                        request_pause(session, job_id)
                    wait_until(context.should_stop)
                phases.append(progress.phase)
                context.report(progress)

            return run_cooperation_graph_job(replace(context, report=report))

        replace(runner, handlers=lambda kind: pausing).run(job_id)
        with sessions() as session:
            assert find_job(session, job_id).status == JobStatus.PAUSED
        with sessions.begin() as session:
            resume_job(session, job_id)
        replace(runner, handlers=lambda kind: pausing).run(job_id)

        with sessions() as session:
            resumed = find_job(session, job_id)
        assert resumed.result is not None, resumed.error
        assert uninterrupted.result is not None, uninterrupted.error
        assert resumed.result["artifacts"] == uninterrupted.result["artifacts"]
        # The first seed's graph was there; the second's was learned after the pause.
        assert phases.count("graph") == 2 * 4

    def test_learns_from_text_that_mixes_domains_by_itself(
        self,
        learn: Callable[..., JobRow],
        release: ReleaseRow,
        documents: dict[str, list[str]],
        upload: Callable[[str, str], str],
    ) -> None:
        pairs = zip(documents["sums"][-40:], documents["plays"][-40:], strict=True)
        mixed = upload_texts(upload, "mixed", [f"{first}\n{second}" for first, second in pairs])

        row = learn(training_files={}, mixed_files=(mixed,), controls=False, seeds=(0,), top_ks=())

        assert row.status == JobStatus.SUCCEEDED, row.error
        assert set(row.result["gains_over"]) == {"no graph"}
        assert row.result["beats_controls"] is False

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({"training_files": ["sums", "poems"]}, "has no expert poems: its experts are sums, plays"),
            ({"training_files": ["sums"], "experts": ("sums", "poems")}, "has no expert poems"),
        ],
        ids=["by their text", "by name"],
    )
    def test_over_experts_of_another_release_is_refused(
        self,
        learn: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        fields: dict[str, Any],
        complaint: str,
    ) -> None:
        row = learn(**fields | {"training_files": dict.fromkeys(fields["training_files"], held_out["sums"])})

        assert row.error is not None
        assert complaint in row.error["message"]
