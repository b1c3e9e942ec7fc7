"""Job rows: claimed once, kept by a lease, ended by their owner alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, func, text, update
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import JobRow, Row
from services.shared.database.session import session_factory
from services.shared.errors import Conflict, NotFound
from services.shared.job_control import request_cancel, request_pause, resume_job
from services.shared.job_events import list_events
from services.shared.job_lease import (
    begin_work,
    claim_job,
    claim_next_job,
    finish_job,
    hand_back_job,
    read_lease,
    record_progress,
    renew_lease,
)
from services.shared.jobs import WaitingJob, create_job, find_job, list_jobs, num_unfinished, waiting_jobs
from services.shared.lost_jobs import reap_jobs
from services.shared.schemas.jobs import ExpertJobSpec, JobProgress
from services.shared.vocabulary import JobKind, JobQueue, JobStatus

pytestmark = pytest.mark.integration

SPEC = ExpertJobSpec(name="math", training_file="file-" + "0" * 32)


@pytest.fixture
def sessions(database_url: str) -> Iterator[sessionmaker[Session]]:
    engine = create_engine(database_url, pool_size=20)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(Row.metadata.tables)} RESTART IDENTITY CASCADE"))
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def job_id(sessions: sessionmaker[Session]) -> str:
    """A queued job."""
    with sessions.begin() as session:
        return create_job(session, SPEC).id


def claim(sessions: sessionmaker[Session], job_id: str, owner: str, *, lease_s: float = 30.0) -> bool:
    with sessions.begin() as session:
        return claim_job(session, job_id, owner=owner, lease_s=lease_s, max_attempts=3) is not None


def let_lease_expire(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions.begin() as session:
        past = func.now() - timedelta(seconds=1)
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=past))


def row_of(sessions: sessionmaker[Session], job_id: str) -> JobRow:
    with sessions() as session:
        return find_job(session, job_id)


class TestClaim:
    def test_of_many_workers_gets_one(self, sessions: sessionmaker[Session], job_id: str) -> None:
        together = threading.Barrier(12)
        winners: list[str] = []

        def race(owner: str) -> None:
            together.wait()
            if claim(sessions, job_id, owner):
                winners.append(owner)

        threads = [threading.Thread(target=race, args=(f"worker-{number}",)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        row = row_of(sessions, job_id)
        assert [row.owner] == winners
        assert (row.status, row.attempt) == (JobStatus.VALIDATING, 1)

    def test_of_a_job_whose_worker_was_lost_counts_a_new_attempt(
        self, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        assert claim(sessions, job_id, "first")
        assert not claim(sessions, job_id, "second")
        let_lease_expire(sessions, job_id)

        assert claim(sessions, job_id, "second")

        assert row_of(sessions, job_id).attempt == 2

    def test_is_refused_when_the_attempts_are_used_up(self, sessions: sessionmaker[Session], job_id: str) -> None:
        for owner in ("first", "second", "third"):
            assert claim(sessions, job_id, owner)
            let_lease_expire(sessions, job_id)

        assert not claim(sessions, job_id, "fourth")

    @pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
    def test_of_an_ended_job_is_refused(self, sessions: sessionmaker[Session], job_id: str, status: JobStatus) -> None:
        claim(sessions, job_id, "first")
        with sessions.begin() as session:
            finish_job(session, job_id, owner="first", status=status, error={"message": "no"})

        assert not claim(sessions, job_id, "second")


class TestBeginning:
    def test_makes_a_validated_job_run_for_its_owner_alone(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "owner")

        with sessions.begin() as session:
            assert not begin_work(session, job_id, owner="other")
            assert begin_work(session, job_id, owner="owner")
            assert not begin_work(session, job_id, owner="owner")

        row = row_of(sessions, job_id)
        assert (row.status, row.owner, row.attempt) == (JobStatus.RUNNING, "owner", 1)
        with sessions() as session:
            told = [event.data["status"] for event in list_events(session, job_id)]
            assert told == ["queued", "validating", "running"]
            assert renew_lease(session, job_id, owner="owner", lease_s=30).held

    def test_of_a_lost_job_is_refused(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "lost")
        let_lease_expire(sessions, job_id)
        claim(sessions, job_id, "successor")

        with sessions.begin() as session:
            assert not begin_work(session, job_id, owner="lost")


class TestOwner:
    def test_alone_renews_reports_and_ends(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "owner")
        progress = JobProgress(phase="training", step=3, total_steps=9, loss=1.5, seconds_left=2.0)

        with sessions.begin() as session:
            assert not renew_lease(session, job_id, owner="other", lease_s=30).held
            record_progress(session, job_id, owner="other", progress=progress)
            assert not finish_job(session, job_id, owner="other", status=JobStatus.SUCCEEDED)
            assert not hand_back_job(session, job_id, owner="other")
        assert row_of(sessions, job_id).step == 0

        with sessions.begin() as session:
            assert renew_lease(session, job_id, owner="owner", lease_s=30).held
            record_progress(session, job_id, owner="owner", progress=progress)
            assert finish_job(session, job_id, owner="owner", status=JobStatus.SUCCEEDED, result={"version": 1})
        row = row_of(sessions, job_id)
        assert (row.step, row.status, row.result) == (3, JobStatus.SUCCEEDED, {"version": 1})
        assert row.finished_at is not None

    def test_that_was_taken_for_dead_learns_it(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "suspended")
        let_lease_expire(sessions, job_id)
        claim(sessions, job_id, "successor")

        with sessions.begin() as session:
            assert not read_lease(session, job_id, owner="suspended").held
            assert not finish_job(session, job_id, owner="suspended", status=JobStatus.SUCCEEDED)

        assert row_of(sessions, job_id).owner == "successor"

    def test_hands_back_without_using_up_an_attempt(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "leaving")

        with sessions.begin() as session:
            assert hand_back_job(session, job_id, owner="leaving")

        row = row_of(sessions, job_id)
        assert (row.status, row.attempt, row.owner) == (JobStatus.QUEUED, 0, None)


class TestCancel:
    def test_of_a_queued_job_ends_it_at_once(self, sessions: sessionmaker[Session], job_id: str) -> None:
        with sessions.begin() as session:
            row = request_cancel(session, job_id)

        assert row.status == JobStatus.CANCELLED
        assert row.finished_at is not None
        assert not claim(sessions, job_id, "late")

    def test_of_a_running_job_is_told_to_its_owner(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "owner")

        with sessions.begin() as session:
            row = request_cancel(session, job_id)
            lease = renew_lease(session, job_id, owner="owner", lease_s=30)

        assert row.status == JobStatus.VALIDATING
        assert lease.held
        assert lease.cancel_requested

    def test_of_an_ended_job_is_a_conflict(self, sessions: sessionmaker[Session], job_id: str) -> None:
        with sessions.begin() as session:
            request_cancel(session, job_id)

        with sessions.begin() as session, pytest.raises(Conflict, match="already ended: it is cancelled"):
            request_cancel(session, job_id)

    def test_of_an_unknown_job_is_not_found(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session, pytest.raises(NotFound):
            request_cancel(session, "job-unknown")


class TestReaper:
    def test_leaves_jobs_with_a_lease_alone(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "owner")

        with sessions.begin() as session:
            reaped = reap_jobs(session, max_attempts=3)

        assert (reaped.requeued, reaped.ended) == ((), ())

    @pytest.mark.parametrize("running", [False, True], ids=["validating", "running"])
    def test_queues_a_lost_job_again(self, sessions: sessionmaker[Session], job_id: str, *, running: bool) -> None:
        claim(sessions, job_id, "lost")
        if running:
            with sessions.begin() as session:
                begin_work(session, job_id, owner="lost")
        let_lease_expire(sessions, job_id)

        with sessions.begin() as session:
            reaped = reap_jobs(session, max_attempts=3)

        assert reaped.requeued == (job_id,)
        assert row_of(sessions, job_id).status == JobStatus.QUEUED

    def test_ends_a_lost_job_without_attempts_left_and_says_what_to_do(
        self, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        claim(sessions, job_id, "lost")
        let_lease_expire(sessions, job_id)

        with sessions.begin() as session:
            reaped = reap_jobs(session, max_attempts=1)

        row = row_of(sessions, job_id)
        assert reaped.ended == (job_id,)
        assert row.status == JobStatus.FAILED
        assert row.error["code"] == "worker_lost"
        assert "batch_size" in row.error["message"]

    def test_cancels_a_lost_job_that_was_to_be_cancelled(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "lost")
        with sessions.begin() as session:
            request_cancel(session, job_id)
        let_lease_expire(sessions, job_id)

        with sessions.begin() as session:
            reap_jobs(session, max_attempts=3)

        assert row_of(sessions, job_id).status == JobStatus.CANCELLED

    def test_finds_queued_jobs_that_have_waited(self, sessions: sessionmaker[Session], job_id: str) -> None:
        with sessions() as session:
            assert waiting_jobs(session, older_than_s=0) == [WaitingJob(job_id, "cpu")]
            assert waiting_jobs(session, older_than_s=60) == []


class TestHistory:
    def test_tells_the_whole_life_in_order(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "owner")
        with sessions.begin() as session:
            error = {"message": "line 3 is broken", "code": "invalid_dataset"}
            finish_job(session, job_id, owner="owner", status=JobStatus.FAILED, error=error)

        with sessions() as session:
            events = list_events(session, job_id)
            later = list_events(session, job_id, after=events[0].id)

        assert [event.data["status"] for event in events] == ["queued", "validating", "failed"]
        assert "line 3 is broken" in events[-1].message
        assert [event.id for event in later] == [event.id for event in events[1:]]

    def test_lists_newest_first_and_by_status(self, sessions: sessionmaker[Session]) -> None:
        ids = []
        for _ in range(3):
            with sessions.begin() as session:
                ids.append(create_job(session, SPEC).id)
        claim(sessions, ids[1], "owner")

        with sessions() as session:
            everything = [row.id for row in list_jobs(session, limit=10)]
            older = [row.id for row in list_jobs(session, limit=10, before=ids[1])]
            running = [row.id for row in list_jobs(session, limit=10, status=JobStatus.VALIDATING)]
            routers = list_jobs(session, limit=10, kind=JobKind.ROUTER)

        assert everything == ids[::-1]
        assert older == [ids[0]]
        assert running == [ids[1]]
        assert not routers


def submit(sessions: sessionmaker[Session], **fields: Any) -> str:
    with sessions.begin() as session:
        return create_job(session, SPEC.model_copy(update=fields)).id


class TestTurns:
    @staticmethod
    def claim_next(sessions: sessionmaker[Session], queue: str = "cpu") -> str | None:
        with sessions.begin() as session:
            row = claim_next_job(session, queue=queue, owner="worker", lease_s=30.0, max_attempts=3)
            return row.id if row is not None else None

    def test_come_by_priority_and_then_by_age(self, sessions: sessionmaker[Session]) -> None:
        low, high, other_high, highest = (submit(sessions, priority=priority) for priority in (0, 5, 5, 9))

        turns = [self.claim_next(sessions) for _ in range(5)]

        assert turns == [highest, high, other_high, low, None]

    def test_are_of_the_workers_own_queue(self, sessions: sessionmaker[Session]) -> None:
        on_gpu, on_cpu = submit(sessions, queue=JobQueue.GPU, priority=9), submit(sessions)

        assert (self.claim_next(sessions), self.claim_next(sessions)) == (on_cpu, None)
        assert self.claim_next(sessions, "gpu") == on_gpu

    def test_of_workers_that_ask_at_once_are_different_jobs(self, sessions: sessionmaker[Session]) -> None:
        jobs = {submit(sessions) for _ in range(6)}
        together = threading.Barrier(6)

        def ask(_: int) -> str | None:
            together.wait()
            return self.claim_next(sessions)

        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(ask, range(6))) == jobs

    def test_pass_over_paused_jobs(self, sessions: sessionmaker[Session], job_id: str) -> None:
        with sessions.begin() as session:
            request_pause(session, job_id)

        assert self.claim_next(sessions) is None


class TestPause:
    def test_of_a_queued_job_is_at_once_and_twice_is_once(self, sessions: sessionmaker[Session], job_id: str) -> None:
        for _ in range(2):
            with sessions.begin() as session:
                assert request_pause(session, job_id).status == JobStatus.PAUSED

        assert not claim(sessions, job_id, "worker")
        with sessions() as session:
            assert len(list_events(session, job_id)) == 2

    def test_of_a_running_job_is_told_to_its_owner_who_lets_go_without_losing_an_attempt(
        self, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        claim(sessions, job_id, "owner")

        with sessions.begin() as session:
            assert request_pause(session, job_id).status == JobStatus.VALIDATING
            assert read_lease(session, job_id, owner="owner").pause_requested
            assert hand_back_job(session, job_id, owner="owner")

        row = row_of(sessions, job_id)
        assert (row.status, row.attempt, row.pause_requested, row.owner) == (JobStatus.PAUSED, 0, False, None)

    def test_ends_by_resuming(self, sessions: sessionmaker[Session], job_id: str) -> None:
        with sessions.begin() as session:
            request_pause(session, job_id)
            assert resume_job(session, job_id).status == JobStatus.QUEUED

        assert claim(sessions, job_id, "worker")
        with pytest.raises(Conflict, match="it is validating"), sessions.begin() as session:
            resume_job(session, job_id)

    def test_is_taken_back_by_resuming_before_the_owner_has_stopped(
        self, sessions: sessionmaker[Session], job_id: str
    ) -> None:
        claim(sessions, job_id, "owner")
        with sessions.begin() as session:
            request_pause(session, job_id)
            assert resume_job(session, job_id).status == JobStatus.VALIDATING

        with sessions.begin() as session:
            assert not read_lease(session, job_id, owner="owner").pause_requested

    def test_comes_about_when_the_worker_is_lost_meanwhile(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "lost")
        with sessions.begin() as session:
            request_pause(session, job_id)
        let_lease_expire(sessions, job_id)

        assert not claim(sessions, job_id, "second")
        with sessions.begin() as session:
            assert reap_jobs(session, max_attempts=3).paused == (job_id,)
        assert row_of(sessions, job_id).status == JobStatus.PAUSED

    def test_can_be_cancelled(self, sessions: sessionmaker[Session], job_id: str) -> None:
        with sessions.begin() as session:
            request_pause(session, job_id)
            assert request_cancel(session, job_id).status == JobStatus.CANCELLED

        for refused in (request_pause, resume_job):
            with pytest.raises(Conflict), sessions.begin() as session:
                refused(session, job_id)

    def test_of_a_job_that_is_being_cancelled_is_refused(self, sessions: sessionmaker[Session], job_id: str) -> None:
        claim(sessions, job_id, "owner")
        with sessions.begin() as session:
            request_cancel(session, job_id)

        with pytest.raises(Conflict, match="being cancelled"), sessions.begin() as session:
            request_pause(session, job_id)
        assert not row_of(sessions, job_id).pause_requested


def test_unfinished_jobs_are_counted_per_user(sessions: sessionmaker[Session]) -> None:
    for user in ("ann", "ann", "bob", None):
        submit(sessions, user=user)
    with sessions.begin() as session:
        request_cancel(session, submit(sessions, user="ann"))
        counts = {user: num_unfinished(session, user=user) for user in ("ann", "bob", None)}

    assert counts == {"ann": 2, "bob": 1, None: 1}
