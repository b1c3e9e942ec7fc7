"""Jobs that activate what they make pass the gate against regressions."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import JobRow, ReleaseRow
from services.shared.job_events import list_events
from services.shared.jobs import find_job
from services.shared.registry import active_release, find_release, set_evaluation
from services.shared.release_evaluation import Evaluation, stored_evaluation
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.schemas.jobs import RouterJobSpec
from services.shared.vocabulary import JobStatus, VersionStatus
from tests.integration.trainer_worker.studies.recipes import QUICK

pytestmark = [pytest.mark.integration, pytest.mark.slow]


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
        assert any(f"evaluated the active {release.id}. So the new" in message for message in told(row, sessions))

    def test_compares_with_what_a_job_measured_where_losses_were_given_by_hand(
        self,
        run: Callable[..., JobRow],
        reroute: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        sessions: sessionmaker[Session],
    ) -> None:
        by_hand = Evaluation(losses={"plays": 9.0, "sums": 9.0}, data="by hand")
        run(held_out=held_out, release=release.id, **QUICK)
        with sessions.begin() as session:
            set_evaluation(session, release.number, by_hand)

        refused = reroute(settings=self.DEAF)

        assert refused.result["activated"] is False
        assert "plays (" in refused.result["not_activated_because"]
        with sessions() as session:
            kept = find_release(session, release.number)
        assert stored_evaluation(kept.evaluation) == by_hand

    def test_says_why_losses_given_by_hand_and_evaluations_of_other_versions_are_not_compared_with(
        self,
        run: Callable[..., JobRow],
        reroute: Callable[..., JobRow],
        release: ReleaseRow,
        held_out: dict[str, str],
        sessions: sessionmaker[Session],
    ) -> None:
        old = run(held_out=held_out, release=release.id, **QUICK)
        with sessions.begin() as session:
            set_evaluation(session, release.number, Evaluation(losses={"plays": 9.0}, data="by hand"))
            row = find_job(session, old.id)
            row.spec = {**row.spec, "max_documents": 8, "fashioned": "old"}

        rerouted = reroute(settings=self.DEAF)

        assert rerouted.status == JobStatus.SUCCEEDED, rerouted.error
        assert rerouted.result["activated"] is True
        messages = told(rerouted, sessions)
        assert any(f"{old.id} is of another version of this program" in message for message in messages)
        assert any("its losses on 'by hand' were given by hand" in message for message in messages)


def told(row: JobRow, sessions: sessionmaker[Session]) -> list[str]:
    """What the job's history says."""
    with sessions() as session:
        return [event.message for event in list_events(session, row.id)]
