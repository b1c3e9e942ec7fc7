"""Evaluations and cooperation graphs from the row to the report, in this process, over two experts of real text."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import RouterSettings, Settings
from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.job_control import request_pause, resume_job
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.cooperation_graph import CooperationGraph
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.registry import active_release, create_release, find_release, register_expert
from services.shared.release_activation import activate_release
from services.shared.release_evaluation import stored_evaluation
from services.shared.schemas.cooperation_graph import CooperationGraphJobSpec
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import ExpertHyperparameters, RouterJobSpec
from services.shared.schemas.sequences import AdapterReport
from services.shared.storage import Storage
from services.shared.training_text import Example
from services.shared.vocabulary import JobStatus, VersionStatus
from services.trainer_worker.cooperation_graph_job import run_cooperation_graph_job
from services.trainer_worker.evaluation.systems import read
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Publish
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.expert import train_expert
from services.trainer_worker.training.graph_report import GraphReport

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SMALL: dict[str, Any] = {
    "seeds": (0,),
    "max_documents": 8,
    "max_switching_documents": 8,
    "max_tokens": 64,
    "thresholds": (0.1, 0.5),
    "top_ks": (1,),
    "stickinesses": (0.2,),
    "tempers": (),
}
PEERS = ("multi-task LoRA, rank 8", "PEFT Arrow", "PEFT X-LoRA")
QUICK: dict[str, Any] = {"thresholds": (), "top_ks": (), "stickinesses": (), "without_each": False}


SMALL_GRAPH: dict[str, Any] = {
    "l1_sweep": (5.0,),
    "top_ks": (1, 2),
    "seeds": (0, 1),
    "hyperparameters": {
        "num_steps": 4,
        "num_epochs": 2,
        "batch_size": 2,
        "max_length": 48,
        "num_test_documents": 8,
        "learning_rate": 0.05,
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def documents(shared_material: Path) -> dict[str, list[str]]:
    """Real word problems, and real programming tasks with their code."""
    folder = shared_material / "data" / "text"
    problems = [json.loads(line) for line in (folder / "gsm8k_test.jsonl").read_text().splitlines()[:120]]
    plays = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    speeches = ["\n\n".join(plays[start : start + 3]) for start in range(0, 360, 3)]
    return {"sums": [f"{one['question']}\n{one['answer']}" for one in problems], "plays": speeches}


@pytest.fixture(scope="module")
def base(shared_material: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(shared_material / "models" / "stories260K-hf"), device="cpu"))


@pytest.fixture(scope="module")
def experts(
    base: LoadedBase, documents: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An expert for each, on all documents but the last forty, with its evidence."""
    folder = tmp_path_factory.mktemp("experts")
    torch.set_num_threads(1)
    made = {}
    for name, texts in documents.items():
        training = train_expert(
            base_model=base.name,
            train=[Example(text, None) for text in texts[:-50]],
            validation=[Example(text, None) for text in texts[-50:-40]],
            hyperparameters=ExpertHyperparameters(
                rank=4, max_steps=40, eval_steps=40, batch_size=4, max_length=128, learning_rate=5e-3
            ),
            output_dir=folder / name,
            num_threads=1,
            on_progress=lambda progress: None,
            should_stop=lambda: False,
        )
        _write_evidence(base, texts[:-50], training.adapter_dir / "evidence" / "bigram.safetensors")
        made[name] = training.adapter_dir
    return made


def _write_evidence(base: LoadedBase, texts: Sequence[str], file: Path) -> None:
    build_bigram_evidence(base.tokenizer.encode_batch(list(texts)), base.tokenizer.vocab_size).save(file)


@pytest.fixture
def release(
    base: LoadedBase,
    experts: dict[str, Path],
    shared_material: Path,
    settings: Settings,
    sessions: sessionmaker[Session],
    tmp_path: Path,
) -> ReleaseRow:
    """Both experts under a Bayes router, active."""
    storage = Storage(settings.storage.root)
    generic = (shared_material / "data" / "text" / "wiki_demo.txt").read_text(encoding="utf-8")[:40_000].split("\n\n")
    evidence = build_bigram_evidence(base.tokenizer.encode_batch(generic), base.tokenizer.vocab_size)
    write_bayes_router(tmp_path / "router", settings=RouterSettings(), base_evidence=evidence)
    report = AdapterReport(
        rank=4, num_parameters=1, num_bytes=1, target_modules=(), lowest_layer=0, base_fingerprint=base.fingerprint
    )
    with sessions.begin() as session:
        versions = [
            register_expert(
                session,
                name=name,
                domain="mathematics" if name == "sums" else None,
                description="",
                digest=storage.publish(folder),
                report=report,
                has_evidence=True,
                source="trained",
            )
            for name, folder in experts.items()
        ]
        made = create_release(
            session,
            base_model="stories260K-hf",
            base_fingerprint=base.fingerprint,
            router_digest=storage.publish(tmp_path / "router"),
            router_kind="bayes",
            graph_digest=None,
            version_ids=[version.id for version in versions],
            note="",
        )
        activate_release(session, made.number, expected_active=None)
        return find_release(session, made.number)


@pytest.fixture
def held_out(documents: dict[str, list[str]], upload: Callable[[str, str], str]) -> dict[str, str]:
    """The documents that no expert was trained on, as files by expert."""
    return {name: _upload(upload, name, texts[-40:]) for name, texts in documents.items()}


def _upload(upload: Callable[[str, str], str], name: str, texts: Sequence[str]) -> str:
    return upload(f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def runner(settings: Settings, sessions: sessionmaker[Session]) -> JobRunner:
    return JobRunner(
        settings=settings,
        sessions=sessions,
        storage=Storage(settings.storage.root),
        owner="this-test",
        shutting_down=lambda: False,
    )


@pytest.fixture
def run_job(runner: JobRunner, sessions: sessionmaker[Session]) -> Callable[[JobSpecBase], JobRow]:
    """Submit a job, run it and return its row."""

    def run_job(spec: JobSpecBase) -> JobRow:
        with sessions.begin() as session:
            job_id = create_job(session, spec).id
        runner.run(job_id)
        with sessions() as session:
            return find_job(session, job_id)

    return run_job


@pytest.fixture
def run(run_job: Callable[[JobSpecBase], JobRow]) -> Callable[..., JobRow]:
    """An evaluation of these fields."""
    return lambda **fields: run_job(EvaluationJobSpec.model_validate(SMALL | fields))


@pytest.fixture
def learn(run_job: Callable[[JobSpecBase], JobRow], held_out: dict[str, str]) -> Callable[..., JobRow]:
    """A cooperation graph of these fields."""
    return lambda **fields: run_job(
        CooperationGraphJobSpec.model_validate({**SMALL_GRAPH, "training_files": held_out} | fields)
    )


def report_of(row: JobRow, settings: Settings) -> tuple[Path, dict[str, Any]]:
    assert row.result is not None, row.error
    folder = Storage(settings.storage.root).artifact(row.result["artifacts"]["report"])
    return folder, json.loads((folder / "report.json").read_text())


def without_speed(figures: Any) -> Any:
    """All that does not depend on how busy the machine was."""
    if isinstance(figures, dict):
        return {name: without_speed(value) for name, value in figures.items() if name != "tokens_per_s"}
    return [without_speed(value) for value in figures] if isinstance(figures, list) else figures


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
        documents: dict[str, list[str]],
        upload: Callable[[str, str], str],
        settings: Settings,
    ) -> None:
        training = {name: _upload(upload, f"all-{name}", texts[:-40]) for name, texts in documents.items()}

        row = run(
            held_out=held_out,
            peers=("multi_task", "arrow", "x_lora"),
            training_files=training,
            multi_task={"max_steps": 12, "batch_size": 4, "max_length": 64, "learning_rate": 1e-2},
            x_lora={"num_steps": 3, "batch_size": 2, "max_length": 48},
            **QUICK,
        )

        folder, figures = report_of(row, settings)
        [seed] = figures["seeds"]
        multi_task, arrow, x_lora = (seed["systems"][name] for name in PEERS)
        bare = seed["systems"]["base"]
        for peer in (multi_task, arrow, x_lora):
            assert 0 < peer["whole"]["loss"][0] < bare["whole"]["loss"][0]
            assert peer["switching"]["loss"][0] > 0
            assert peer["tokens_per_s"] > 0
        assert set(PEERS) < set(seed["routed_minus"])
        text = (folder / "report.md").read_text()
        assert all(f"| {name} |" in text for name in PEERS)
        assert all(about in text for about in figures["peers"])
        assert row.step == row.total_steps

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
        other = run(held_out={**held_out, "sums": _upload(upload, "fewer", documents["sums"][-38:])}, **QUICK)

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
        _, uninterrupted = report_of(run(held_out=held_out, **QUICK), settings)
        num_read: list[int] = []

        def pausing(*arguments: Any, **options: Any) -> Any:
            num_read.append(1)
            if len(num_read) == 4:
                with sessions.begin() as session:
                    request_pause(session, job_id)
                _wait_until_heard(options["on_batch"])
            return read(*arguments, **options)

        monkeypatch.setattr("services.trainer_worker.evaluation.staged_reading.read", pausing)
        with sessions.begin() as session:
            job_id = create_job(session, EvaluationJobSpec.model_validate({**SMALL, "held_out": held_out, **QUICK})).id
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
        # Three systems were read before the pause and one was broken off: twelve in all, that one twice.
        assert num_before == 4
        assert len(num_read) == 12 + 1
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
                    _wait_until(context.should_stop)
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
        mixed = _upload(upload, "mixed", [f"{first}\n{second}" for first, second in pairs])

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


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _wait_until_heard(on_batch: Callable[[int], None]) -> None:
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


class TestActivationByAJob:
    DEAF: Final = {"temper": 1e-9, "expert_selection_threshold": 0.9}
    """A router that hears nothing never lets an expert speak."""

    @pytest.fixture
    def reroute(
        self, run_job: Callable[[JobSpecBase], JobRow], upload: Callable[[str, str], str], shared_material: Path
    ) -> Callable[..., JobRow]:
        """A job that makes a router over the active release's experts and is to activate it."""
        wiki = (shared_material / "data" / "text" / "wiki_demo.txt").read_text(encoding="utf-8")[:40_000]
        generic = upload("wiki.txt", wiki)
        return lambda **fields: run_job(
            RouterJobSpec.model_validate({"generic_file": generic, "activate": True} | fields)
        )

    def test_is_refused_where_a_domain_becomes_worse_and_the_release_is_there(
        self,
        run: Callable[..., JobRow],
        reroute: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        sessions: sessionmaker[Session],
    ) -> None:
        measured = run(held_out=held_out, **QUICK)
        assert measured.result is not None, measured.error

        refused = reroute(settings=self.DEAF)
        tolerated = reroute(settings=self.DEAF, tolerance=50.0)
        checked = run(held_out=held_out, release=refused.result["release"], **QUICK)

        assert refused.status == JobStatus.SUCCEEDED, refused.error
        assert refused.result["activated"] is False
        assert "plays (" in refused.result["not_activated_because"]
        assert f"worse than the active {release.id}" in refused.result["not_activated_because"]
        with sessions() as session:
            kept = find_release(session, int(refused.result["release"].removeprefix("release-")))
            warned = [event.message for event in list_events(session, refused.id) if event.level == "warn"]
            now_active = active_release(session)
        assert kept.status == VersionStatus.STAGED
        assert any("is made but not active" in message for message in warned)
        assert tolerated.result["activated"] is True
        assert now_active is not None
        assert now_active.id == tolerated.result["release"]
        before, gate, afterwards = (
            stored_evaluation(one)
            for one in (measured.result["evaluation"], kept.evaluation, checked.result["evaluation"])
        )
        assert gate is not None
        assert gate == afterwards, "the gate measures what an evaluation job measures"
        assert before is not None
        assert all(gate.losses[domain] > before.losses[domain] for domain in before.losses)

    def test_goes_through_where_no_domain_becomes_worse_and_hands_its_evaluation_on(
        self,
        run: Callable[..., JobRow],
        reroute: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        sessions: sessionmaker[Session],
    ) -> None:
        run(held_out=held_out, **QUICK)

        rerouted = reroute(tolerance=0.5)
        refused = reroute(settings=self.DEAF)

        assert rerouted.result["activated"] is True, rerouted.result
        assert refused.result["activated"] is False
        assert f"the active {rerouted.result['release']}" in refused.result["not_activated_because"]

    def test_says_that_nothing_was_compared_where_nothing_was_measured(
        self, reroute: Callable[..., JobRow], release: ReleaseRow, sessions: sessionmaker[Session]
    ) -> None:
        row = reroute(settings=self.DEAF)

        assert row.result["activated"] is True
        with sessions() as session:
            told = [event.message for event in list_events(session, row.id)]
        assert any(f"{release.id} was not evaluated by a job" in message for message in told)
