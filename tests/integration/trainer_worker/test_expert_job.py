"""Expert jobs from the row to the release, in this process, on a real base model and real text."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.dataset_report import survey
from services.router_service.dry_run import Ground, dry_run
from services.shared.base_shape import BaseShape
from services.shared.config import Settings
from services.shared.database.rows import ExpertVersionRow, JobRow, ReleaseRow
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.modeling.base_model import base_fingerprint
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.registry import active_release, create_release, retire_expert
from services.shared.release_activation import activate_release
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.schemas.jobs import ExpertJobSpec, RouterJobSpec
from services.shared.storage import Storage
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import read_examples
from services.shared.vocabulary import JobStatus
from services.trainer_worker.evidence import EvidenceMaker
from services.trainer_worker.expert_job import run_expert_job
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Publish

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QUICK = ExpertHyperparameters(rank=4, max_steps=8, eval_steps=4, batch_size=4, max_length=64, learning_rate=2e-3)
Run = Callable[..., JobRow]


@pytest.fixture
def expert(word_problems: str) -> Callable[..., ExpertJobSpec]:
    """An expert job that joins and activates."""

    def expert(name: str, **changes: Any) -> ExpertJobSpec:
        fields = {"training_file": word_problems, "hyperparameters": QUICK, "add_to_release": True, "activate": True}
        return ExpertJobSpec(name=name, **(fields | changes))

    return expert


@pytest.fixture(scope="module")
def base_text(shared_material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model's own text, which a worker samples once per base model."""
    base_model = str(shared_material / "models" / "stories260K-hf")
    storage = Storage(tmp_path_factory.mktemp("base-text"))
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.trainer_worker.evidence.DEFAULT_MAX_TOKENS", 4_000)
        EvidenceMaker(
            settings=Settings(base_model=base_model, device="cpu"),
            storage=storage,
            tokenizer=load_tokenizer(base_model),
            fingerprint=base_fingerprint(base_model),
            tap_layer=None,
        ).base_row()
    return storage.root / "base_text"


@pytest.fixture(autouse=True)
def _sampled_before(settings: Settings, base_text: Path) -> None:
    shutil.copytree(base_text, settings.storage.root / "base_text")


def active(sessions: sessionmaker[Session]) -> ReleaseRow:
    with sessions() as session:
        release = active_release(session)
    assert release is not None
    return release


def scorer_of(release: ReleaseRow, settings: Settings) -> ReleaseScorer:
    """The release's router as the services load it."""
    storage = Storage(settings.storage.root)
    return ReleaseScorer.load(
        router_dir=storage.artifact(release.router_digest),
        graph_dir=None,
        experts=[(c.version.expert_name, storage.artifact(c.version.digest)) for c in release.experts],
        vocab_size=load_tokenizer(settings.base_model).vocab_size,
    )


def columns(release: ReleaseRow) -> list[tuple[str, int]]:
    return [(column.version.expert_name, column.version.version) for column in release.experts]


class TestCheckpoints:
    def test_are_published_with_their_losses_when_they_are_to_be_kept(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], settings: Settings
    ) -> None:
        alone = {"add_to_release": False, "activate": False}
        kept = run_job(expert("kept", keep_checkpoints=True, **alone)).result
        not_kept = run_job(expert("not-kept", **alone)).result

        storage = Storage(settings.storage.root)
        by_step = {checkpoint["step"]: checkpoint for checkpoint in kept["checkpoints"]}
        assert sorted(by_step) == [4, 8]
        best = min(by_step.values(), key=lambda checkpoint: float(checkpoint["eval_loss"]))
        assert best["eval_loss"] == pytest.approx(kept["metrics"]["eval_loss"])
        assert all(checkpoint["loss"] > 0 for checkpoint in by_step.values())
        assert by_step[4]["digest"] != by_step[8]["digest"]
        adapter = storage.artifact(kept["digest"])
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (storage.artifact(best["digest"]) / name).read_bytes() == (adapter / name).read_bytes()
        assert "checkpoints" not in not_kept

    def test_are_published_while_the_training_goes_on(
        self,
        expert: Callable[..., ExpertJobSpec],
        runner: JobRunner,
        settings: Settings,
        sessions: sessionmaker[Session],
    ) -> None:
        with sessions.begin() as session:
            job_id = create_job(session, expert("failing", keep_checkpoints=True)).id
        seen: list[list[int]] = []

        def failing(context: JobContext) -> Publish:
            def keep(checkpoints: Sequence[Mapping[str, Any]]) -> None:
                context.keep_checkpoints(checkpoints)
                seen.append([one["step"] for one in checkpoints])
                if len(seen) == 2:
                    raise MemoryError

            return run_expert_job(replace(context, keep_checkpoints=keep))

        replace(runner, handlers=lambda _: failing).run(job_id)

        assert seen == [[4], [4, 8]]
        with sessions() as session:
            row = find_job(session, job_id)
        assert row.error["code"] == "out_of_memory"
        assert row.checkpoints is not None
        for kept in row.checkpoints:
            assert (Storage(settings.storage.root).artifact(kept["digest"]) / "adapter_model.safetensors").is_file()


class TestJoining:
    def test_makes_the_first_release_and_adds_to_and_replaces_in_the_next(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], sessions: sessionmaker[Session], settings: Settings
    ) -> None:
        first = run_job(expert("math", domain="mathematics"))
        second = run_job(expert("sums"))
        router = active(sessions).router_digest
        third = run_job(expert("math", hyperparameters=QUICK.model_copy(update={"seed": 1})))

        assert [row.status for row in (first, second, third)] == [JobStatus.SUCCEEDED] * 3, first.error
        assert first.result["metrics"]["eval_loss"] < first.result["metrics"]["base_eval_loss"]
        release = active(sessions)
        assert third.result["release"] == release.id
        assert columns(release) == [("math", 2), ("sums", 1)]
        assert release.router_digest == router
        assert scorer_of(release, settings).columns == ("math", "sums", "base")

    def test_only_when_asked(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], sessions: sessionmaker[Session]
    ) -> None:
        alone = run_job(expert("alone", add_to_release=False, activate=False))
        staged = run_job(expert("staged", activate=False))

        assert "release" not in alone.result
        assert staged.result["activated"] is False
        with sessions() as session:
            assert active_release(session) is None
            assert session.query(ReleaseRow).count() == 1
            assert session.query(ExpertVersionRow).count() == 2

    def test_takes_the_steps_that_a_dry_run_foretold(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], settings: Settings
    ) -> None:
        in_epochs = QUICK.model_copy(update={"max_steps": None, "num_epochs": 1.5, "batch_size": 16})
        spec = expert("math", hyperparameters=in_epochs, add_to_release=False, activate=False)
        tokenizer = load_tokenizer(settings.base_model)
        file = read_examples(Storage(settings.storage.root).upload(spec.training_file), filename="problems.jsonl")
        shape = BaseShape.of_model(settings.base_model)
        ground = Ground(shape=shape, max_context=tokenizer.max_context, queue="cpu", measured=None)

        foretold = dry_run(spec, {"training_file": survey(file, tokenizer)}, ground)
        row = run_job(spec)

        assert row.status == JobStatus.SUCCEEDED, row.error
        assert foretold.num_steps == row.total_steps == row.step
        assert foretold.estimate is not None
        assert 0.2 < foretold.estimate.peak_memory_bytes / row.result["metrics"]["peak_memory_bytes"] < 5

    def test_loses_no_change_that_was_activated_meanwhile(
        self,
        run_job: Run,
        expert: Callable[..., ExpertJobSpec],
        sessions: sessionmaker[Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("math", "sums"):
            run_job(expert(name))
        interfered: list[int] = []

        def activate_late(session: Session, number: int, *, expected_active: int | None) -> ReleaseRow:
            # Between the job's reading of the active release and its activation, somebody removes `sums`.
            if not interfered:
                interfered.append(_release_without(sessions, "sums"))
            return activate_release(session, number, expected_active=expected_active)

        monkeypatch.setattr("services.trainer_worker.releases.activate_release", activate_late)
        row = run_job(expert("late"))

        assert row.status == JobStatus.SUCCEEDED, row.error
        assert columns(active(sessions)) == [("math", 1), ("late", 1)]
        with sessions() as session:
            assert session.query(ReleaseRow).count() == 4


def _release_without(sessions: sessionmaker[Session], name: str) -> int:
    with sessions.begin() as session:
        release = active_release(session)
        assert release is not None
        kept = [column.version_id for column in release.experts if column.version.expert_name != name]
        smaller = create_release(
            session,
            base_model=release.base_model,
            base_fingerprint=release.base_fingerprint,
            router_digest=release.router_digest,
            router_kind=release.router_kind,
            graph_digest=None,
            version_ids=kept,
            note="smaller",
        )
        activate_release(session, smaller.number, expected_active=release.number)
        retire_expert(session, name)
        return smaller.number


class TestFailing:
    def test_on_bad_data_names_the_line(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], upload: Callable[[str, str], str]
    ) -> None:
        lines = ['{"text": "good"}', '{"text": "good"}', '{"text": broken']

        row = run_job(expert("math", training_file=upload("bad.jsonl", "\n".join(lines))))

        assert row.status == JobStatus.FAILED
        assert row.error["code"] == "invalid_dataset"
        assert "bad.jsonl line 3" in row.error["message"]

    def test_on_too_little_data_says_how_much_is_needed(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], upload: Callable[[str, str], str]
    ) -> None:
        row = run_job(expert("math", training_file=upload("one.txt", "All the text there is.")))

        assert row.error["code"] == "invalid_dataset"
        assert "at least 2" in row.error["message"]

    def test_on_an_absurd_learning_rate_names_it_and_registers_nothing(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], sessions: sessionmaker[Session], settings: Settings
    ) -> None:
        absurd = QUICK.model_copy(update={"learning_rate": 1.0, "alpha": 1e6, "max_steps": 60, "warmup_ratio": 0.0})

        row = run_job(expert("math", hyperparameters=absurd))

        assert row.status == JobStatus.FAILED
        assert row.error["code"] in {"loss_not_finite", "training_diverged"}
        assert "lower learning_rate (it was 1)" in row.error["message"]
        with sessions() as session:
            assert session.query(ExpertVersionRow).count() == 0
        checkpoints = (Storage(settings.storage.root).root / "jobs" / row.id / "work" / "checkpoints").glob("*")
        assert len(list(checkpoints)) <= 1

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/gpu")
    def test_in_processes_of_its_own_gives_their_reason_and_the_command(
        self, runner: JobRunner, expert: Callable[..., ExpertJobSpec], sessions: sessionmaker[Session]
    ) -> None:
        # The rate climbs step by step, so that there is a checkpoint before it is too high.
        climbing = QUICK.model_copy(
            update={"learning_rate": 1.0, "alpha": 1e5, "max_steps": 30, "warmup_ratio": 1.0, "eval_steps": 1}
        )
        trainer = runner.settings.trainer.model_copy(update={"num_processes": 2})
        with sessions.begin() as session:
            job_id = create_job(session, expert("math", hyperparameters=climbing)).id

        replace(runner, settings=runner.settings.model_copy(update={"trainer": trainer})).run(job_id)

        with sessions() as session:
            row = find_job(session, job_id)
            messages = [event.message for event in list_events(session, job_id)]
        assert row.status == JobStatus.FAILED
        assert row.error["code"] in {"loss_not_finite", "training_diverged"}
        assert "lower learning_rate (it was 1)" in row.error["message"]
        assert "is kept: GET /jobs" in row.error["message"]
        assert row.step >= 1
        assert any(message.startswith("Started: accelerate launch --multi_gpu ") for message in messages)
        commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        assert not [command for command in commands if job_id in command]


class TestRouterJob:
    def test_makes_a_bayes_router_with_settings_of_its_own(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], sessions: sessionmaker[Session], settings: Settings
    ) -> None:
        for name in ("math", "sums"):
            run_job(expert(name))

        row = run_job(RouterJobSpec(settings={"temper": 0.2, "max_experts_per_token": 1}, activate=True))

        assert row.status == JobStatus.SUCCEEDED, row.error
        release = active(sessions)
        assert row.result["release"] == release.id
        assert columns(release) == [("math", 1), ("sums", 1)]
        router = Storage(settings.storage.root).artifact(release.router_digest) / "router.json"
        fields = json.loads(router.read_text())
        assert (fields["temper"], fields["max_experts_per_token"]) == (0.2, 1)

    def test_adds_the_trunk_evidence_that_it_needs_and_newcomers_bring_theirs(
        self, run_job: Run, expert: Callable[..., ExpertJobSpec], sessions: sessionmaker[Session], settings: Settings
    ) -> None:
        run_job(expert("math"))

        router = run_job(RouterJobSpec(settings={"tap_layer": 1}, activate=True))
        newcomer = run_job(expert("sums"))

        assert router.status == JobStatus.SUCCEEDED, router.error
        assert newcomer.status == JobStatus.SUCCEEDED, newcomer.error
        release = active(sessions)
        assert columns(release) == [("math", 2), ("sums", 1)]
        assert scorer_of(release, settings).tap_layer == 1
        folder = Storage(settings.storage.root).artifact(release.experts[1].version.digest)
        adapted = json.loads((folder / "adapter_config.json").read_text())["layers_to_transform"]
        assert adapted == [1, 2, 3, 4], "the newcomer leaves the trunk below the tap as it is"

    def test_takes_the_base_row_from_a_file(
        self,
        run_job: Run,
        expert: Callable[..., ExpertJobSpec],
        upload: Callable[[str, str], str],
        shared_material: Path,
    ) -> None:
        run_job(expert("math"))
        text = (shared_material / "data" / "text" / "wiki_demo.txt").read_text(encoding="utf-8")[:20_000]

        sampled = run_job(RouterJobSpec())
        given = run_job(RouterJobSpec(generic_file=upload("wiki.txt", text)))

        assert given.status == JobStatus.SUCCEEDED, given.error
        assert given.result["router"] != sampled.result["router"]

    def test_trains_a_learned_router_that_takes_no_newcomer(
        self,
        run_job: Run,
        expert: Callable[..., ExpertJobSpec],
        word_problems: str,
        sessions: sessionmaker[Session],
    ) -> None:
        for name in ("math", "sums"):
            run_job(expert(name))
        hyperparameters = {"num_steps": 4, "batch_size": 2, "max_length": 64}

        router = run_job(
            RouterJobSpec(
                router="learned",
                training_files={"math": word_problems, "sums": word_problems},
                hyperparameters=hyperparameters,
                activate=True,
            )
        )
        newcomer = run_job(expert("newcomer"))
        again = run_job(expert("math"))

        assert router.status == JobStatus.SUCCEEDED, router.error
        assert router.result["router_kind"] == "learned"
        assert newcomer.error["code"] == "router_takes_no_newcomer"
        assert again.status == JobStatus.SUCCEEDED, again.error
        assert columns(active(sessions)) == [("math", 2), ("sums", 1)]

    def test_says_which_setting_is_wrong(self, run_job: Run, expert: Callable[..., ExpertJobSpec]) -> None:
        row = run_job(RouterJobSpec(settings={"temperature": 1}))

        assert row.status == JobStatus.FAILED
        assert "settings.temperature" in row.error["message"]
        assert "temper" in row.error["message"]

    def test_without_experts_says_so(self, run_job: Run, sessions: sessionmaker[Session]) -> None:
        row = run_job(RouterJobSpec())

        assert row.error["code"] == "no_experts"
        with sessions() as session:
            assert list_events(session, row.id)[-1].level == "error"
