"""Gap analyses that workers submit by themselves."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import GapSettings, Settings
from services.shared.database.rows import JobRow
from services.shared.queue import celery_client, num_waiting
from services.shared.vocabulary import JobStatus
from services.trainer_worker.reaper import run_reaper
from services.trainer_worker.scheduled_analyses import ScheduledAnalyses
from tests.integration.trainer_worker.gap_analysis.traffic import Traffic

pytestmark = pytest.mark.integration


def analyses(settings: Settings, sessions: sessionmaker[Session]) -> ScheduledAnalyses:
    return ScheduledAnalyses(settings, sessions, celery_client(settings))


def a_period_later(settings: Settings, sessions: sessionmaker[Session], status: JobStatus) -> None:
    """All jobs were submitted so long ago, and are there by now."""
    past = datetime.now(UTC) - timedelta(seconds=settings.gaps.analyse_every_s + 1)
    with sessions.begin() as session:
        session.execute(update(JobRow).values(created_at=past, status=status.value))


def submitted(sessions: sessionmaker[Session]) -> list[str]:
    with sessions() as session:
        return list(session.scalars(select(JobRow.id).where(JobRow.kind == "gap_analysis")))


def test_the_reaper_submits_one_and_sends_for_it(
    settings: Settings, sessions: sessionmaker[Session], traffic: Traffic
) -> None:
    traffic.send("law", 1, flagged=True)
    rounds = iter([False, False, True])

    run_reaper(settings, should_stop=lambda _: next(rounds))

    assert len(submitted(sessions)) == 1
    assert num_waiting(celery_client(settings)) >= 1


def test_of_several_workers_one_submits(settings: Settings, sessions: sessionmaker[Session], traffic: Traffic) -> None:
    traffic.send("law", 1, flagged=True)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: analyses(settings, sessions).run_if_due(), range(4)))

    assert [job_id for job_id in told if job_id is not None] == submitted(sessions)
    assert len(submitted(sessions)) == 1


def test_without_flagged_requests_there_is_nothing_to_look_at(
    settings: Settings, sessions: sessionmaker[Session], traffic: Traffic
) -> None:
    traffic.send("law", 3, flagged=False)

    assert analyses(settings, sessions).run_if_due() is None


def test_the_next_comes_a_period_later_and_only_if_more_was_flagged(
    settings: Settings, sessions: sessionmaker[Session], traffic: Traffic
) -> None:
    traffic.send("law", 1, flagged=True, ago=timedelta(days=2))
    first = analyses(settings, sessions).run_if_due()
    at_once = analyses(settings, sessions).run_if_due()
    a_period_later(settings, sessions, JobStatus.SUCCEEDED)
    traffic.send("law", 1, flagged=True, ago=timedelta(days=1))
    nothing_new = analyses(settings, sessions).run_if_due()
    traffic.send("law", 1, flagged=True, ago=timedelta(minutes=1))
    second = analyses(settings, sessions).run_if_due()

    assert (at_once, nothing_new) == (None, None)
    assert submitted(sessions) == [first, second]


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_none_is_added_to_one_that_waits_or_runs(
    settings: Settings, sessions: sessionmaker[Session], traffic: Traffic, status: JobStatus
) -> None:
    traffic.send("law", 1, flagged=True, ago=timedelta(days=2))
    first = analyses(settings, sessions).run_if_due()
    a_period_later(settings, sessions, status)
    traffic.send("law", 1, flagged=True)

    assert analyses(settings, sessions).run_if_due() is None
    assert submitted(sessions) == [first]


def test_it_can_be_turned_off(settings: Settings, sessions: sessionmaker[Session], traffic: Traffic) -> None:
    traffic.send("law", 1, flagged=True)
    off = settings.model_copy(update={"gaps": GapSettings(analyse_every_s=0.0)})

    assert analyses(off, sessions).run_if_due() is None
