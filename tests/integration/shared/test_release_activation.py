"""Going back to the release that was active before, and the gate against regressions."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.errors import Conflict
from services.shared.registry import active_release, create_release, set_evaluation
from services.shared.release_activation import activate_release, rollback_release
from services.shared.release_evaluation import Evaluation

pytestmark = pytest.mark.integration

TOLERANCE = 0.02


def new_release(session: Session, losses: Mapping[str, float] | None = None, *, data: str = "") -> int:
    """The number of a release without experts, with these losses."""
    return create_release(
        session,
        base_model="demo",
        base_fingerprint="f" * 64,
        router_digest="b" * 64,
        router_kind="bayes",
        graph_digest=None,
        version_ids=[],
        note="",
        evaluation=Evaluation(losses=dict(losses), data=data) if losses else None,
    ).number


def active_number(session: Session) -> int:
    release = active_release(session)
    assert release is not None
    return release.number


class TestRollback:
    def test_each_one_goes_one_activation_further_back(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            first, second, third = (new_release(session) for _ in range(3))
            for number in (first, second, third, second):
                activate_release(session, number)

            back = [rollback_release(session).number for _ in range(3)]

            assert back == [third, second, first]
            assert active_number(session) == first
            with pytest.raises(Conflict, match="nothing to go back to"):
                rollback_release(session)

    def test_an_activation_after_it_starts_from_there(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            first, second, third = (new_release(session) for _ in range(3))
            activate_release(session, first)
            activate_release(session, second)
            rollback_release(session)
            activate_release(session, third)

            assert rollback_release(session).number == first

    def test_activating_the_active_release_again_is_no_step(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            first, second = new_release(session), new_release(session)
            for number in (first, second, second):
                activate_release(session, number)

            assert rollback_release(session).number == first

    def test_two_at_once_go_back_one_step(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            numbers = [new_release(session) for _ in range(4)]
            for number in numbers:
                activate_release(session, number)
        start = Barrier(4)

        def go_back() -> bool:
            with sessions() as session, session.begin():
                start.wait()
                try:
                    rollback_release(session, expected_active=numbers[-1])
                except Conflict:
                    return False
                return True

        with ThreadPoolExecutor(4) as pool:
            outcomes = [done.result() for done in [pool.submit(go_back) for _ in range(4)]]

        assert outcomes.count(True) == 1
        with sessions() as session:
            assert active_number(session) == numbers[-2]

    def test_it_is_never_held_up_by_an_evaluation(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            worse, better = new_release(session, {"math": 2.0}), new_release(session, {"math": 1.0})
            activate_release(session, worse)
            activate_release(session, better, tolerance=TOLERANCE)

            assert rollback_release(session).number == worse


class TestRegressionGate:
    def test_one_that_is_worse_in_a_domain_is_refused_with_the_figures(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            active = new_release(session, {"math": 1.0, "code": 1.0})
            worse = new_release(session, {"math": 1.05, "code": 0.5})
            activate_release(session, active)

            with pytest.raises(Conflict, match=r"math \(1\.0500 instead of 1\.0000\); 0\.02 nats") as refused:
                activate_release(session, worse, tolerance=TOLERANCE)

            assert refused.value.error_code == "release_regression"
            assert "code" not in refused.value.message
            assert active_number(session) == active
            assert activate_release(session, worse).number == active_number(session)

    @pytest.mark.parametrize(
        ("before", "after", "data"),
        [
            ({"math": 1.0}, {"math": 1.02}, ""),
            ({"math": 1.0}, {"code": 9.0}, ""),
            (None, {"math": 9.0}, ""),
            ({"math": 1.0}, None, ""),
            ({"math": 1.0}, {"math": 9.0}, "other text"),
        ],
        ids=["within the tolerance", "other domains", "no evaluation before", "no evaluation now", "other data"],
    )
    def test_what_is_no_worse_or_cannot_be_compared_is_activated(
        self,
        sessions: sessionmaker[Session],
        before: Mapping[str, float] | None,
        after: Mapping[str, float] | None,
        data: str,
    ) -> None:
        with sessions.begin() as session:
            activate_release(session, new_release(session, before))
            number = new_release(session, after, data=data)

            assert activate_release(session, number, tolerance=TOLERANCE).number == active_number(session)

    def test_an_evaluation_that_came_later_counts(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            active, new = new_release(session), new_release(session, {"math": 2.0})
            activate_release(session, active)
            set_evaluation(session, active, Evaluation(losses={"math": 1.0}))

            with pytest.raises(Conflict, match="math"):
                activate_release(session, new, tolerance=TOLERANCE)
