"""Experts and releases in Postgres: versions, retirement, and activation by compare-and-set."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from services.shared import registry
from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.release_activation import activate_release
from services.shared.schemas.sequences import AdapterReport
from services.shared.vocabulary import VersionStatus

pytestmark = pytest.mark.integration

FINGERPRINT = "f" * 64
REPORT = AdapterReport(
    rank=8, num_parameters=100, num_bytes=400, target_modules=("q_proj",), lowest_layer=0, base_fingerprint=FINGERPRINT
)


def register(
    session: Session,
    name: str,
    *,
    fingerprint: str = FINGERPRINT,
    domain: str | None = None,
    must_be_new: bool = False,
) -> ExpertVersionRow:
    return registry.register_expert(
        session,
        name=name,
        domain=domain,
        description="",
        digest="a" * 64,
        report=REPORT.model_copy(update={"base_fingerprint": fingerprint}),
        has_evidence=True,
        source="imported",
        must_be_new=must_be_new,
    )


def release_of(session: Session, *names: str) -> int:
    return registry.create_release(
        session,
        base_model="demo",
        base_fingerprint=FINGERPRINT,
        router_digest="b" * 64,
        router_kind="bayes",
        graph_digest=None,
        version_ids=[row.id for row in registry.latest_versions(session, names)],
        note="",
    ).number


class TestExperts:
    def test_registering_again_makes_the_next_version_and_keeps_what_was_not_said(
        self, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            register(session, "math", domain="sums")
            again = register(session, "math")

            expert = registry.find_expert(session, "math")

        assert again.version == 2
        assert expert.domain == "sums"

    def test_two_writers_never_take_the_same_version(self, sessions: sessionmaker[Session]) -> None:
        def register_once() -> int:
            with sessions.begin() as session:
                return register(session, "math").version

        with ThreadPoolExecutor(4) as pool:
            versions = sorted(done.result() for done in [pool.submit(register_once) for _ in range(8)])

        assert versions == list(range(1, 9))

    def test_a_name_that_must_be_new_takes_nobodys(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            assert register(session, "law_expert", must_be_new=True).version == 1

        with pytest.raises(Conflict, match="'law_expert'"), sessions.begin() as session:
            register(session, "law_expert", must_be_new=True)

        with sessions() as session:
            assert len(registry.find_expert(session, "law_expert").versions) == 1

    def test_an_unknown_name_is_answered_with_close_ones(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            register(session, "mathematics")

            with pytest.raises(NotFound, match="Did you mean 'mathematics'"):
                registry.latest_versions(session, ["mathmatics"])

    def test_the_base_models_name_cannot_be_taken(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session, pytest.raises(InvalidRequest):
            register(session, "base")

    @pytest.mark.parametrize(("name", "domain"), [("law", "unknown"), ("law", "base"), ("unknown", None)])
    def test_no_domain_is_called_as_text_is_that_nobody_knows(
        self, sessions: sessionmaker[Session], name: str, domain: str | None
    ) -> None:
        with pytest.raises(InvalidRequest, match="another domain"), sessions.begin() as session:
            register(session, name, domain=domain)

    def test_a_retired_expert_is_not_offered_until_it_is_registered_again(
        self, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            register(session, "math")
            registry.retire_expert(session, "math")
            offered_while_retired = registry.latest_versions(session)

            register(session, "math")
            offered_again = registry.latest_versions(session)

        assert offered_while_retired == []
        assert [row.version for row in offered_again] == [2]

    def test_an_expert_of_the_active_release_cannot_be_retired(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            register(session, "math")
            activate_release(session, release_of(session, "math"))

            with pytest.raises(Conflict, match="activate a release without it first"):
                registry.retire_expert(session, "math")


class TestReleases:
    def test_a_release_keeps_its_columns_in_the_order_given(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            for name in ("code", "math", "story"):
                register(session, name)

            release = registry.find_release(session, release_of(session, "story", "code", "math"))

        assert [column.version.expert_name for column in release.experts] == ["story", "code", "math"]

    def test_experts_for_another_base_model_are_refused(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            register(session, "math", fingerprint="e" * 64)

            with pytest.raises(Conflict, match="made for another base model"):
                release_of(session, "math")

    def test_an_expert_named_twice_is_refused(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            register(session, "math")

            with pytest.raises(InvalidRequest, match="twice named: math"):
                release_of(session, "math", "math")

    @pytest.mark.parametrize("number", [0, -1, 7, 2**63])
    def test_a_release_that_is_not_there_is_not_found(self, sessions: sessionmaker[Session], number: int) -> None:
        with sessions.begin() as session, pytest.raises(NotFound):
            registry.find_release(session, number)


class TestActivation:
    def test_the_old_release_steps_down_as_the_new_one_comes_up(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            first, second = release_of(session), release_of(session)
            activate_release(session, first, expected_active=None)
            activate_release(session, second, expected_active=first)
        with sessions.begin() as session:
            statuses = {row.number: row.status for row in session.scalars(select(ReleaseRow))}

        assert statuses == {first: VersionStatus.RETIRED, second: VersionStatus.ACTIVE}

    def test_rollback_is_activation_of_the_older_one(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            first, second = release_of(session), release_of(session)
            for number in (first, second, first):
                activate_release(session, number)

            active = registry.active_release(session)

        assert active is not None
        assert active.number == first

    @pytest.mark.parametrize("expected", [None, 99])
    def test_another_active_release_than_expected_changes_nothing(
        self, sessions: sessionmaker[Session], expected: int | None
    ) -> None:
        with sessions.begin() as session:
            first, second = release_of(session), release_of(session)
            activate_release(session, first)

            with pytest.raises(Conflict, match=f"The active release is release-{first}"):
                activate_release(session, second, expected_active=expected)
            active = registry.active_release(session)

        assert active is not None
        assert active.number == first

    def test_activating_the_active_release_again_changes_nothing(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            number = release_of(session)
            when = activate_release(session, number).activated_at

            again = activate_release(session, number, expected_active=number)

        assert again.activated_at == when

    def test_a_release_with_a_retired_expert_is_refused(self, sessions: sessionmaker[Session]) -> None:
        with sessions.begin() as session:
            register(session, "math")
            number = release_of(session, "math")
            registry.retire_expert(session, "math")

            with pytest.raises(Conflict, match="retired experts"):
                activate_release(session, number)

    @pytest.mark.parametrize("from_none", [True, False], ids=["none active", "one active"])
    def test_of_many_at_once_that_expect_the_same_exactly_one_succeeds(
        self, sessions: sessionmaker[Session], from_none: bool
    ) -> None:
        with sessions.begin() as session:
            start = None if from_none else release_of(session)
            if start is not None:
                activate_release(session, start)
            numbers = [release_of(session) for _ in range(6)]
        gate = Barrier(len(numbers))

        def activate(number: int) -> bool:
            gate.wait()
            try:
                with sessions.begin() as session:
                    activate_release(session, number, expected_active=start)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(len(numbers)) as pool:
            won = list(pool.map(activate, numbers))
        with sessions.begin() as session:
            active = registry.active_release(session)

        assert won.count(True) == 1
        assert active is not None
        assert active.number == numbers[won.index(True)]

    def test_without_an_expectation_all_at_once_succeed_and_one_is_left_active(
        self, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            numbers = [release_of(session) for _ in range(4)]

        def activate(number: int) -> None:
            with sessions.begin() as session:
                activate_release(session, number)

        with ThreadPoolExecutor(len(numbers)) as pool:
            list(pool.map(activate, numbers))
        with sessions.begin() as session:
            num_active = session.scalar(select(func.count()).where(ReleaseRow.status == VersionStatus.ACTIVE))

        assert num_active == 1

    def test_retiring_and_activating_at_once_never_leaves_a_retired_expert_active(
        self, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            register(session, "math")
            number = release_of(session, "math")
        gate = Barrier(2)

        def attempt(retire: bool) -> bool:
            gate.wait()
            try:
                with sessions.begin() as session:
                    if retire:
                        registry.retire_expert(session, "math")
                    else:
                        activate_release(session, number)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            won = list(pool.map(attempt, [True, False]))

        assert sorted(won) == [False, True]
