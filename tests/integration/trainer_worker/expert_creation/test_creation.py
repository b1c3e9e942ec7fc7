"""From data to a released expert, on the demo's base model and a domain that it has never seen."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.job_files import JobFiles
from services.shared.config import Settings, TeacherSettings
from services.shared.database.rows import ExpertVersionRow, GapRow, JobRow, ReleaseRow
from services.shared.errors import Conflict
from services.shared.gaps import hold_open_gap
from services.shared.job_control import request_cancel, resume_job
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.registry import active_release, find_release
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.schemas.expert_creation import ExpertCreationJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.demo.domains import DOMAINS, Item
from services.trainer_worker.expert_creation.job import run_expert_creation_job
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Publish
from tests.integration.trainer_worker.expert_creation.conftest import EXPERTS, SHORT
from tests.integration.trainer_worker.studies.recipes import QUICK, SMALL
from tests.teacher_endpoint import Endpoint, Respond, answer, serving, status

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Create = Callable[..., JobRow]
Creation = Callable[..., ExpertCreationJobSpec]
BRIEF = SHORT.model_copy(update={"max_steps": 4, "eval_steps": 2})
STEPS = ["data", "approval", "training", "gate_row", "evaluation", "remeasuring", "release"]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A teacher of chess that is busy at first, of whose lines half are no examples, and that repeats itself."""
    with serving(status(503), *map(poor_answer, range(20))) as endpoint:
        yield endpoint


def poor_answer(number: int) -> Respond:
    """Forty lines: ten examples that are new, ten of before, and twenty that cannot be used."""
    items = [
        *DOMAINS["chess_notation"].generate(100 + number, 10, "train"),
        *DOMAINS["chess_notation"].generate(99, 10, "train"),
    ]
    bad = ["I hope this helps!", json.dumps({"prompt": "Only a prompt?"})] * 9
    poison = [json.dumps({"prompt": "Repeat after me: ", "completion": "buy now! " * 50})] * 2
    return answer("\n".join([lines_of(items), *bad, *poison]))


@pytest.fixture
def settings(settings: Settings, endpoint: Endpoint) -> Settings:
    """With that teacher under the name `poor`."""
    poor = TeacherSettings(url=endpoint.url, model="poor-1", backoff_s=0.0)
    return settings.model_copy(update={"teachers": {"poor": poor}})


def lines_of(items: Sequence[Item]) -> str:
    """A file of examples."""
    return "\n".join(json.dumps({"prompt": item.prompt, "completion": item.completion}) for item in items)


def steps(row: JobRow) -> dict[str, Any]:
    """The figures of a job's steps by name."""
    assert row.result is not None, row.error
    return {step["step"]: step["figures"] for step in row.result["steps"]}


class TestAnExpertThatHelps:
    def test_is_released_and_closes_its_gap(
        self, create: Create, release: ReleaseRow, gap: str, sessions: sessionmaker[Session], endpoint: Endpoint
    ) -> None:
        row = create(gap=gap, name=None, teacher="poor")

        assert row.status == JobStatus.SUCCEEDED, row.error
        result = row.result
        assert result is not None
        with sessions() as session:
            now_active = active_release(session)
            closed = session.get_one(GapRow, gap)
            told_last = list_events(session, row.id)[-2].message
        assert now_active is not None
        assert told_last.startswith(f"chess_expert, version 1, is released in {now_active.id}; held-out examples cost ")
        assert f"the gap {gap} is closed" in told_last
        assert [column.version.expert_name for column in now_active.experts] == ["factual", "math", "chess_expert"]
        assert (result["released"], result["release"]) == (True, now_active.id)
        assert (closed.status, closed.closed_by_job, closed.closed_by_release) == ("closed", row.id, now_active.id)
        assert list(steps(row)) == [step for step in STEPS if step != "approval"]
        assert result["evaluation"]["gain"]["low"] > 0
        assert result["evaluation"]["improvement_rate"] > 0.9
        assert set(result["evaluation"]["other_domains"]) == {"factual", "math"}
        assert result["gap"]["remeasured"]["num_prompts"] == 40
        assert result["gap"]["remeasured"]["routed_to_the_expert"] > 0.9
        assert result["gap"]["remeasured"]["flagged_before"] > 0.9
        assert result["gap"]["remeasured"]["flagged_after"] < 0.1
        told = json.dumps(endpoint.requests[-1][2])
        assert "questions about openings" in told

    def test_leaves_its_data_and_what_was_dropped_of_it(
        self,
        create: Create,
        release: ReleaseRow,
        settings: Settings,
        sessions: sessionmaker[Session],
        upload: Callable[[str, str], str],
    ) -> None:
        # What the teacher will say first is what an evaluation has read.
        evaluated = DOMAINS["chess_notation"].generate(100, 10, "train")
        file_id = upload("held_out.jsonl", lines_of(evaluated))
        with sessions.begin() as session:
            create_job(session, EvaluationJobSpec(held_out={"math": file_id}))

        row = create(teacher="poor", instructions="chess", activate=False, hyperparameters=BRIEF)

        assert row.result is not None, row.error
        data = row.result["data"]
        assert data["num_kept"] == data["num_train"] + data["num_held_out"] == 100
        assert data["dropped"]["not_json"] == data["dropped"]["not_an_example"] == 9 * data["num_answers"]
        assert data["dropped"]["duplicate"] >= 10 * (data["num_answers"] - 1)
        assert data["dropped"]["repetitive"] == 1
        assert data["dropped"]["contaminated"] >= 10
        assert data["compared_with"] == {"files": [file_id], "num_texts": 10}
        files = JobFiles(Storage(settings.storage.root), row.id, row.result)
        names = {artifact.path for artifact in files.artifacts()}
        assert {"data/train.jsonl", "data/held_out.jsonl", "data/report.json", "report/evaluation.json"} <= names
        kept = [files.artifact(f"data/{name}.jsonl").read_text().splitlines() for name in ("train", "held_out")]
        assert [len(one) for one in kept] == [data["num_train"], data["num_held_out"]]
        prompts = [{json.loads(line)["prompt"] for line in one} for one in kept]
        assert not prompts[0] & prompts[1]
        assert not (prompts[0] | prompts[1]) & {item.prompt for item in evaluated}
        assert (row.result["released"], row.result["activated"]) == (False, False)
        assert "activate is false" in row.result["because"]

    def test_makes_the_first_release_where_there_is_none(
        self, create: Create, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.trainer_worker.evidence.DEFAULT_MAX_TOKENS", 1_000)

        row = create(hyperparameters=BRIEF)

        assert row.status == JobStatus.SUCCEEDED, row.error
        assert row.result is not None
        assert row.result["released"] is True
        assert row.result["evaluation"]["other_domains"] == {}
        with sessions() as session:
            now_active = active_release(session)
        assert now_active is not None
        assert [column.version.expert_name for column in now_active.experts] == ["chess"]

    def test_is_not_activated_beside_experts_that_it_was_not_compared_with(
        self,
        request: pytest.FixtureRequest,
        creation: Creation,
        runner: JobRunner,
        sessions: sessionmaker[Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("services.trainer_worker.evidence.DEFAULT_MAX_TOKENS", 1_000)

        def overtaken(context: JobContext) -> Publish:
            publish = run_expert_creation_job(context)
            request.getfixturevalue("release")  # another becomes active, of experts that nothing was compared with
            return publish

        with sessions.begin() as session:
            job_id = create_job(session, creation(hyperparameters=BRIEF)).id
        replace(runner, handlers=lambda _: overtaken).run(job_id)

        with sessions() as session:
            row, now_active = find_job(session, job_id), active_release(session)
            assert row.result is not None, row.error
            made = find_release(session, int(row.result["release"].removeprefix("release-")))
        assert (row.result["released"], row.result["activated"]) == (False, False)
        assert "compared with the base model alone, another release became active" in row.result["because"]
        assert now_active is not None
        assert [column.version.expert_name for column in now_active.experts] == list(EXPERTS)
        assert [column.version.expert_name for column in made.experts] == [*EXPERTS, "chess"]
        assert made.evaluation is None


class TestAnExpertThatHarms:
    def test_is_not_released_nor_registered(
        self,
        create: Create,
        run_job: Callable[[JobSpecBase], JobRow],
        release: ReleaseRow,
        upload: Callable[[str, str], str],
        sessions: sessionmaker[Session],
        settings: Settings,
    ) -> None:
        held_out = {
            name: upload(f"{name}.jsonl", lines_of(DOMAINS[name].generate(0, 8, "held_out"))) for name in EXPERTS
        }
        evaluated = run_job(EvaluationJobSpec.model_validate(SMALL | QUICK | {"evidence": (), "held_out": held_out}))
        # A beginner in a field that an expert of long training speaks for: it is heard there, and knows less.
        beginners = upload("sums.jsonl", lines_of(DOMAINS["math"].generate(3, 100, "train")))

        row = create(name="sums", training_files=(beginners,))

        assert row.status == JobStatus.SUCCEEDED, row.error
        assert row.result is not None
        assert row.result["released"] is False
        assert "its gain on held-out data is not above zero" in row.result["because"]
        assert "math +" in row.result["because"]
        assert evaluated.result is not None, evaluated.error
        assert row.result["evaluation"]["other_domains_read"] == evaluated.result["evaluation"]["data"]
        with sessions() as session:
            now_active = active_release(session)
            versions = session.scalars(select(ExpertVersionRow.expert_name)).all()
            warned = [event.message for event in list_events(session, row.id) if event.level == "warn"]
        assert now_active is not None
        assert now_active.id == release.id
        assert sorted(versions) == ["factual", "math"]
        assert any("is not released" in message for message in warned)
        assert (Storage(settings.storage.root).artifact(row.result["digest"]) / "adapter_config.json").exists()


class Killed(BaseException):
    """The end of a worker's process, as far as its job can tell."""


def killed_after_a_step(context: JobContext) -> Publish:
    """The job's code in a process that ends once one more step is done."""

    def note(message: str, **more: Any) -> None:
        context.note(message, **more)
        if message.startswith("Step "):
            raise Killed

    return run_expert_creation_job(replace(context, note=note))


class TestInterruptions:
    @pytest.fixture
    def submit_and_run(
        self, sessions: sessionmaker[Session], runner: JobRunner, creation: Creation
    ) -> Callable[..., str]:
        """Submit a job and run one attempt; returns its id."""

        def submit_and_run(**fields: Any) -> str:
            with sessions.begin() as session:
                job_id = create_job(session, creation(**fields)).id
            runner.run(job_id)
            return job_id

        return submit_and_run

    def test_a_job_that_is_killed_between_any_two_steps_ends_as_if_it_had_not(
        self,
        create: Create,
        creation: Creation,
        runner: JobRunner,
        release: ReleaseRow,
        gap: str,
        sessions: sessionmaker[Session],
    ) -> None:
        fields = {"gap": gap, "activate": False, "search": (2, 4), "hyperparameters": BRIEF}
        whole = create(**fields)
        trainer = runner.settings.trainer.model_copy(update={"max_attempts": 20})
        lasting = replace(runner, settings=runner.settings.model_copy(update={"trainer": trainer}))
        with sessions.begin() as session:
            job_id = create_job(session, creation(**fields)).id

        num_killed = 0
        while True:
            try:
                replace(lasting, handlers=lambda _: killed_after_a_step).run(job_id)
            except Killed:
                num_killed += 1
                with sessions.begin() as session:
                    session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 s'"))
            else:
                break

        with sessions() as session:
            row = find_job(session, job_id)
        assert row.status == JobStatus.SUCCEEDED, row.error
        assert num_killed == 5
        assert list(steps(row)) == [step for step in STEPS if step != "approval"]
        assert row.result is not None
        assert whole.result is not None
        assert row.result["artifacts"]["data"] == whole.result["artifacts"]["data"]
        assert row.result["digest"] == whole.result["digest"]
        assert row.result["evaluation"] == whole.result["evaluation"]
        assert row.result["gap"] == whole.result["gap"]
        assert set(steps(row)["training"]["tried"]) == {"2", "4"}
        moments = [step[moment] for step in row.result["steps"] for moment in ("started_at", "finished_at")]
        assert moments == sorted(moments), "no step was done again"

    def test_a_job_that_wants_approval_waits_for_it_with_its_data_to_be_looked_at(
        self,
        submit_and_run: Callable[..., str],
        runner: JobRunner,
        release: ReleaseRow,
        sessions: sessionmaker[Session],
        settings: Settings,
    ) -> None:
        job_id = submit_and_run(approval=True, hyperparameters=BRIEF)

        with sessions.begin() as session:
            row = find_job(session, job_id)
            asked = [event.message for event in list_events(session, job_id) if "approval" in event.message]
            waiting = row.status
            resume_job(session, job_id)
        files = JobFiles(Storage(settings.storage.root), job_id, None)
        kept = files.artifact("data/train.jsonl").read_text().splitlines()
        runner.run(job_id)
        with sessions() as session:
            ended = find_job(session, job_id)

        assert waiting == JobStatus.PAUSED
        assert len(asked) == 1
        assert f"POST /jobs/{job_id}/resume" in asked[0]
        assert len(kept) == 70
        assert ended.status == JobStatus.SUCCEEDED, ended.error
        assert steps(ended)["approval"] == {"approved": True}

    def test_data_that_is_refused_is_not_trained_on(
        self,
        submit_and_run: Callable[..., str],
        runner: JobRunner,
        release: ReleaseRow,
        sessions: sessionmaker[Session],
    ) -> None:
        job_id = submit_and_run(approval=True)

        with sessions.begin() as session:
            request_cancel(session, job_id)
        runner.run(job_id)

        with sessions() as session:
            assert find_job(session, job_id).status == JobStatus.CANCELLED
            assert active_release(session).number == release.number  # type: ignore[union-attr]

    def test_a_worker_that_is_lost_while_it_asks_for_approval_asks_again_or_waits(
        self, creation: Creation, runner: JobRunner, release: ReleaseRow, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            job_id = create_job(session, creation(approval=True)).id

        def lost(context: JobContext) -> Publish:
            try:
                return run_expert_creation_job(context)
            except Exception as error:
                raise Killed from error

        with pytest.raises(Killed):
            replace(runner, handlers=lambda _: lost).run(job_id)
        with sessions.begin() as session:
            session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 s'"))
        runner.run(job_id)

        with sessions() as session:
            row = find_job(session, job_id)
        assert row.pause_requested, "nobody has resumed it, so no worker may take it"
        assert row.attempt == 1


class TestFailing:
    def test_of_a_teacher_that_nobody_named(self, create: Create, release: ReleaseRow) -> None:
        row = create(teacher="stranger", instructions="anything")

        assert row.status == JobStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "unknown_teacher"
        assert "it knows: poor" in row.error["message"]

    def test_for_want_of_examples_says_what_became_of_them(
        self, create: Create, release: ReleaseRow, upload: Callable[[str, str], str]
    ) -> None:
        lines = [json.dumps({"prompt": "Always the same question?", "completion": " Yes."})] * 50

        row = create(training_files=(upload("same.jsonl", "\n".join(lines)),))

        assert row.error is not None
        assert row.error["code"] == "too_few_examples"
        assert "Of 50 examples 1 can be used, and 20 are needed (dropped: 49 duplicate)" in row.error["message"]

    def test_where_hardly_any_example_can_be_judged(
        self, create: Create, release: ReleaseRow, upload: Callable[[str, str], str]
    ) -> None:
        items = DOMAINS["chess_notation"].generate(5, 32, "train")
        # Most completions begin only beyond max_length.
        far = [
            replace(item, prompt=f"{' '.join(f'move {n}' for n in range(k, 200 + k))} {item.prompt}")
            for k, item in enumerate(items[4:])
        ]
        brief = BRIEF.model_copy(update={"completion_only_loss": True})

        row = create(training_files=(upload("far.jsonl", lines_of([*items[:4], *far])),), hyperparameters=brief)

        assert row.error is not None, row.result
        assert row.error["code"] == "nothing_to_judge"
        assert "and 6 are needed" in row.error["message"]


class TestOneAtATime:
    def test_a_second_job_for_a_gap_is_refused_until_the_first_has_ended(
        self, gap: str, creation: Creation, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            hold_open_gap(session, gap)
            first = create_job(session, creation(gap=gap)).id

        with pytest.raises(Conflict, match=first) as refused, sessions.begin() as session:
            hold_open_gap(session, gap)
        with sessions.begin() as session:
            request_cancel(session, first)
            assert hold_open_gap(session, gap).id == gap

        assert refused.value.error_code == "gap_in_work"
