"""Evaluations from the row to the report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.job_control import request_pause, resume_job
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.modeling.base_model import LoadedBase
from services.shared.registry import find_release
from services.shared.release_evaluation import stored_evaluation
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import RouterJobSpec
from services.shared.vocabulary import JobStatus
from services.trainer_worker.evaluation.peers import PeerMaker
from services.trainer_worker.evaluation.systems import read
from services.trainer_worker.job_runner import JobRunner
from tests.integration.trainer_worker.studies.recipes import QUICK, SMALL
from tests.integration.trainer_worker.studies.reports import report_of, without_speed
from tests.integration.trainer_worker.studies.texts import upload_texts

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PEERS = ("multi-task LoRA, rank 8", "PEFT Arrow", "PEFT X-LoRA")


@pytest.fixture
def training(documents: dict[str, list[str]], upload: Callable[[str, str], str]) -> dict[str, str]:
    """What is not held out, as files by expert."""
    return {name: upload_texts(upload, f"all-{name}", texts[:-40]) for name, texts in documents.items()}


class TestEvaluation:
    def test_measures_the_release_and_everything_it_is_compared_with(
        self,
        run: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        upload: Callable[[str, str], str],
        shared_material: Path,
        settings: Settings,
        sessions: sessionmaker[Session],
    ) -> None:
        wiki = (shared_material / "data" / "text" / "wiki_demo.txt").read_text(encoding="utf-8")[-20_000:]
        files = {"mathematics": held_out["sums"], "plays": held_out["plays"]}

        row = run(held_out=files, unknown_file=upload("wiki.txt", wiki))

        assert row.status == JobStatus.SUCCEEDED, row.error
        folder, figures = report_of(row, settings)
        assert figures["domains"] == {"mathematics": "sums", "plays": "plays"}
        [seed] = figures["seeds"]
        assert set(seed["systems"]) == {
            "base",
            "expert sums",
            "expert plays",
            "uniform mixture",
            "oracle",
            "routed",
        }
        self.assert_is_consistent(seed)
        assert [one["gate"] for one in figures["sweep"]] == ["threshold 0.1", "threshold 0.5", "top-k 1"]
        assert all(one["whole"]["tokens_per_s"] > 0 for one in figures["sweep"])
        [as_released] = [one for one in figures["sweep"] if one["gate"] == "threshold 0.1"]
        assert as_released["whole"]["loss"] == pytest.approx(seed["systems"]["routed"]["whole"]["loss"][0], abs=1e-4)
        assert [one["filter"] for one in figures["filter_sweep"]] == ["as released", "stickiness 0.2"]
        as_released, restless = (one["whole"] for one in figures["filter_sweep"])
        assert as_released["loss"] == pytest.approx(seed["systems"]["routed"]["whole"]["loss"][0], abs=1e-4)
        assert restless["loss"] != as_released["loss"]
        assert set(figures["newcomers"]) == {"mathematics", "plays"}
        for newcomer in figures["newcomers"].values():
            assert newcomer["loss_with"] < newcomer["loss_without"]
        assert set(figures["unknown"]["losses"]) == {"base", "uniform mixture", "routed"}
        self.assert_is_reported(folder, figures)
        self.assert_is_on_the_release(row, figures, release, sessions)

    def assert_is_consistent(self, seed: dict[str, Any]) -> None:
        systems, routing = seed["systems"], seed["routing"]
        for name in ("mathematics", "plays"):
            expert = "sums" if name == "mathematics" else "plays"
            own = systems[f"expert {expert}"]["domains"][name]
            assert own == pytest.approx(systems["oracle"]["domains"][name], abs=1e-5)
            assert own < systems["base"]["domains"][name]
        assert systems["base"]["whole"]["kept"][0] == 0.0
        assert systems["oracle"]["whole"]["kept"][0] == 1.0
        value, low, high = systems["routed"]["whole"]["kept"]
        assert low <= value <= high
        assert value > systems["uniform mixture"]["whole"]["kept"][0]
        used = routing["utilisation"]
        assert sum(used["weight_C"]) == pytest.approx(1.0, abs=1e-5)
        assert routing["experts_per_token"] == pytest.approx(sum(used["tokens_C"][:-1]), abs=1e-6)
        assert sum(one["share"] for one in routing["calibration"]["bins"]) == pytest.approx(1.0)
        assert 0.5 < routing["agreement"] <= 1.0
        around = seed["around_switch"]
        assert len(around["distance"]) == len(around["losses"]["routed"])
        assert 0 in around["distance"]

    def assert_is_reported(self, folder: Path, figures: dict[str, Any]) -> None:
        text = (folder / "report.md").read_text()
        pictures = sorted(path.name for path in folder.glob("*.png"))
        assert pictures == ["around_switch.png", "kept.png", "reliability.png", "sweep.png", "utilisation.png"]
        assert all(f"]({name})" in text for name in pictures)
        assert f"# Evaluation of {figures['release']}" in text
        assert "nan" not in text

    def assert_is_on_the_release(
        self, row: JobRow, figures: dict[str, Any], release: ReleaseRow, sessions: sessionmaker[Session]
    ) -> None:
        with sessions() as session:
            evaluation = stored_evaluation(find_release(session, release.number).evaluation)
            events = list_events(session, row.id, after=0, limit=1000)
        assert evaluation is not None
        assert evaluation.losses == pytest.approx(figures["losses"])
        assert evaluation.data.startswith("held-out text ")
        assert any("of the oracle's gain kept" in event.message for event in events)

    def test_compares_with_what_else_could_be_done_with_the_same_experts_and_text(
        self,
        run: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        training: dict[str, str],
        settings: Settings,
    ) -> None:
        row = run(
            held_out=held_out,
            peers=("multi_task", "arrow", "x_lora"),
            training_files=training,
            multi_task={"max_steps": 12, "batch_size": 4, "max_length": 64, "learning_rate": 1e-2},
            x_lora={"num_steps": 3, "batch_size": 2, "max_length": 48},
            **QUICK | {"seeds": (0, 1)},
        )

        folder, figures = report_of(row, settings)
        for seed in figures["seeds"]:
            multi_task, arrow, x_lora = (seed["systems"][name] for name in PEERS)
            bare = seed["systems"]["base"]
            for peer in (multi_task, arrow, x_lora):
                assert 0 < peer["whole"]["loss"][0] < bare["whole"]["loss"][0]
                assert peer["switching"]["loss"][0] > 0
                assert peer["tokens_per_s"] > 0
            assert set(PEERS) < set(seed["routed_minus"])
        for name in PEERS:
            over_seeds = figures["systems_over_seeds"][name]["whole"]
            by_seed = [seed["systems"][name]["whole"]["loss"][0] for seed in figures["seeds"]]
            loss, low, high = over_seeds["loss"]
            assert loss == pytest.approx(np.mean(by_seed), abs=1e-4)
            assert low <= loss <= high
            routed = figures["systems_over_seeds"]["routed"]["whole"]["loss"][0]
            assert routed == pytest.approx(loss + over_seeds["routed_minus"][0], abs=1e-4)
        about = " ".join(figures["peers"])
        assert about.count("seeds 0, 1") == len(PEERS) - 1
        text = (folder / "report.md").read_text()
        assert all(f"| {name} |" in text for name in PEERS)
        assert all(about in text for about in figures["peers"])
        assert row.step == row.total_steps

    def test_tries_other_evidence_made_of_the_text_that_it_is_given(
        self,
        run: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        training: dict[str, str],
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("services.trainer_worker.evidence.DEFAULT_MAX_TOKENS", 1_000)

        row = run(held_out=held_out, tap_layers=(1,), training_files=training, **QUICK)

        folder, figures = report_of(row, settings)
        as_released, trunk, both = figures["evidence_sweep"]
        assert [one["evidence"] for one in (as_released, trunk, both)] == [
            "as released",
            "trunk, tap 1",
            "bigram+trunk, tap 1",
        ]
        assert (both["bigram_weight"], both["trunk_weight"], both["tap_layer"]) == (1.0, 0.05, 1)
        bare = figures["seeds"][0]["systems"]["base"]["whole"]["loss"][0]
        losses = {one["whole"]["loss"] for one in (as_released, trunk, both)}
        assert len(losses) == 3
        assert max(losses) < bare
        assert "| bigram+trunk, tap 1 |" in (folder / "report.md").read_text()
        assert row.step == row.total_steps

    def test_of_a_release_that_hears_states_tries_each_kind_alone(
        self,
        run: Callable[..., JobRow],
        run_job: Callable[[JobSpecBase], JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        training: dict[str, str],
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("services.trainer_worker.evidence.DEFAULT_MAX_TOKENS", 1_000)
        made = run_job(RouterJobSpec(training_files=training, settings={"tap_layer": 1}))
        assert made.result is not None, made.error

        row = run(held_out=held_out, release=made.result["release"], **QUICK)

        _, figures = report_of(row, settings)
        heard = {one["evidence"]: (one["bigram_weight"], one["trunk_weight"]) for one in figures["evidence_sweep"]}
        assert heard == {"as released": (1.0, 0.05), "bigram": (1.0, 0.0), "trunk, tap 1": (0.0, 0.4)}

    @pytest.mark.parametrize(
        ("tap_layer", "complaint"),
        [(1, "carries no exemplars to make it of: name a file"), (99, "tap_layers must lie in 0..4")],
        ids=["no text", "no such layer"],
    )
    def test_of_evidence_that_cannot_be_made_says_what_to_do(
        self, run: Callable[..., JobRow], release: ReleaseRow, held_out: dict[str, str], tap_layer: int, complaint: str
    ) -> None:
        row = run(held_out=held_out, tap_layers=(tap_layer,), **QUICK)

        assert row.error is not None
        assert complaint in row.error["message"]

    def test_of_the_same_text_is_comparable_and_of_other_text_is_not(
        self,
        run: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        documents: dict[str, list[str]],
        upload: Callable[[str, str], str],
    ) -> None:
        first = run(held_out=held_out, **QUICK)
        again = run(held_out=held_out, release=release.id, **QUICK)
        other = run(held_out={**held_out, "sums": upload_texts(upload, "fewer", documents["sums"][-38:])}, **QUICK)

        assert first.result is not None
        assert again.result is not None
        assert other.result is not None
        assert first.result["evaluation"] == again.result["evaluation"]
        assert first.result["evaluation"]["data"] != other.result["evaluation"]["data"]

    def test_goes_on_after_a_pause_without_reading_anything_twice(
        self,
        runner: JobRunner,
        run: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        settings: Settings,
        sessions: sessionmaker[Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        fields = {"held_out": held_out, "peers": ("arrow",), **QUICK}
        _, uninterrupted = report_of(run(**fields), settings)
        num_read: list[int] = []
        make = create_autospec(PeerMaker.make, side_effect=PeerMaker.make)

        def pausing(*arguments: Any, **options: Any) -> Any:
            num_read.append(1)
            if len(num_read) == 4:
                with sessions.begin() as session:
                    request_pause(session, job_id)
                wait_until_heard(options["on_batch"])
            return read(*arguments, **options)

        monkeypatch.setattr("services.trainer_worker.evaluation.staged_reading.read", pausing)
        monkeypatch.setattr(PeerMaker, "make", make)
        with sessions.begin() as session:
            job_id = create_job(session, EvaluationJobSpec.model_validate(SMALL | fields)).id
        runner.run(job_id)
        with sessions() as session:
            assert find_job(session, job_id).status == JobStatus.PAUSED
        num_before = len(num_read)
        with sessions.begin() as session:
            resume_job(session, job_id)
        runner.run(job_id)

        with sessions() as session:
            row = find_job(session, job_id)
        _, resumed = report_of(row, settings)
        assert without_speed(resumed) == without_speed(uninterrupted)
        # Three systems were read before the pause and one was broken off: fourteen in all, that one twice.
        assert num_before == 4
        assert len(num_read) == 14 + 1
        assert make.call_count == 1, "a peer that has read everything is not made again"
        assert row.step == row.total_steps

    @pytest.mark.parametrize(
        ("names", "complaint"),
        [
            ({"verse": "plays"}, "Its experts: plays, sums|Its experts: sums, plays"),
            ({"mathematics": "sums", "sums": "sums"}, "both mean the expert 'sums'"),
        ],
        ids=["no expert of that name", "two names of one expert"],
    )
    def test_says_which_text_belongs_to_no_expert_of_its_own(
        self,
        run: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        names: dict[str, str],
        complaint: str,
    ) -> None:
        row = run(held_out={name: held_out[file] for name, file in names.items()})

        assert row.status == JobStatus.FAILED
        assert row.error is not None
        assert any(part in row.error["message"] for part in complaint.split("|"))
        assert row.error["param"].startswith("held_out.")

    def test_without_a_release_says_so(self, run: Callable[..., JobRow], held_out: dict[str, str]) -> None:
        row = run(held_out=held_out)

        assert row.error is not None
        assert row.error["code"] == "no_release"


def wait_until_heard(on_batch: Callable[[int], None]) -> None:
    """Until the job has noticed that it should stop, which `on_batch` then raises."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        on_batch(0)
        time.sleep(0.05)
    raise AssertionError("the pause was not noticed")


def test_reading_with_only_the_experts_that_speak_changes_nothing(
    base: LoadedBase, experts: dict[str, Path], documents: dict[str, list[str]]
) -> None:
    from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

    ids_BT = torch.tensor([base.tokenizer.encode(documents["sums"][-1])[:40]])
    weights_BTE = torch.tensor([0.0, 0.7]).expand(1, ids_BT.shape[1], 2)
    with ExpertEnsemble.load(base, list(experts.items())) as ensemble, torch.no_grad():
        every = ensemble.nats(ids_BT, weights_BTE)
        speaking = ensemble.nats(ids_BT, weights_BTE, only_speaking=True)

    np.testing.assert_allclose(every, speaking, atol=1e-5)
