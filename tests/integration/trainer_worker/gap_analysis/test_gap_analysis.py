"""Gap analyses from the routing log to the gaps."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings, TeacherSettings
from services.shared.database.rows import ExpertRow, GapRequestRow, GapRow, JobRow, ReleaseRow, RequestRow
from services.shared.gaps import close_gap, dismiss_gap, merge_gap, requests_of_gap
from services.shared.job_events import list_events
from services.shared.jobs import create_job, find_job
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.shared.schemas.job_spec import JobSpecBase
from services.shared.vocabulary import JobKind
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.job_runner import JobRunner
from services.trainer_worker.kinds import Publish, handler_of
from tests.integration.trainer_worker.gap_analysis.traffic import KNOWN, UNKNOWN, Traffic
from tests.teacher_endpoint import Endpoint, answer, serving

pytestmark = pytest.mark.integration

Analyse = Callable[..., dict[str, Any]]


@pytest.fixture
def belonging(sessions: sessionmaker[Session]) -> Callable[[str], set[str]]:
    """Ids of a gap's requests."""

    def belonging(gap_id: str) -> set[str]:
        with sessions() as session:
            return set(requests_of_gap(session, gap_id, limit=1000))

    return belonging


class TestNaming:
    @pytest.fixture
    def endpoint(self) -> Iterator[Endpoint]:
        with serving(answer("board games")) as endpoint:
            yield endpoint

    @pytest.fixture
    def settings(self, settings: Settings, endpoint: Endpoint) -> Settings:
        return settings.model_copy(update={"teachers": {"big": TeacherSettings(url=endpoint.url, model="big-1")}})

    def test_a_teacher_names_the_domain_and_so_the_expert(
        self, traffic: Traffic, analyse: Analyse, endpoint: Endpoint, gap: Callable[[str], GapRow]
    ) -> None:
        traffic.ordinary()
        traffic.send("chess_notation", 20, flagged=True)

        [found] = analyse(teacher="big")["gaps"]

        row = gap(found["id"])
        assert row.domain == "board games"
        assert row.expert_name.startswith("board_games_")
        assert row.report["domain"] == {"name": "board games", "share": 1.0, "by": "teacher"}
        assert len(endpoint.requests) == 1


class TestClusters:
    @pytest.mark.parametrize(
        "sizes",
        [
            (40, 40, 40, 40),
            (50, 20, 10, 30),
            (12, 12, 12, 12),
            (40,),
            (0, 40),
            (0, 0, 40),
            (0, 0, 0, 40),
            (0, 9, 0, 30),
        ],
        ids=str,
    )
    def test_every_unknown_domain_is_one_gap_with_its_own_prompts(
        self, traffic: Traffic, analyse: Analyse, belonging: Callable[[str], set[str]], sizes: tuple[int, ...]
    ) -> None:
        traffic.ordinary()
        for domain in KNOWN:  # flagged by mistake
            traffic.send(domain, 2, flagged=True)
        sent = {
            domain: set(traffic.send(domain, size, flagged=True))
            for domain, size in zip(UNKNOWN, sizes, strict=False)
            if size
        }

        gaps = [belonging(gap["id"]) for gap in analyse()["gaps"]]

        assert len(gaps) == len(sent)
        for domain, ids in sent.items():
            best = max(gaps, key=lambda members: len(members & ids))
            precision, recall = len(best & ids) / len(best), len(best & ids) / len(ids)
            assert precision >= 0.9, (domain, precision)
            assert recall >= 0.9, (domain, recall)

    def test_what_is_flagged_by_mistake_is_told_as_noise(self, traffic: Traffic, analyse: Analyse) -> None:
        traffic.ordinary(20)
        for domain in KNOWN:
            traffic.send(domain, 4, flagged=True)

        result = analyse()

        assert result["gaps"] == []
        assert (result["num_flagged"], result["num_ordinary"], result["num_noise"]) == (20, 100, 20)

    @pytest.mark.parametrize("num", [0, 1, 7])
    def test_too_few_are_told_and_no_failure(
        self, traffic: Traffic, run_job: Callable[[JobSpecBase], JobRow], sessions: sessionmaker[Session], num: int
    ) -> None:
        traffic.send("law", num, flagged=True)

        row = run_job(GapAnalysisJobSpec())

        assert row.status == "succeeded"
        assert row.result is not None
        assert (row.result["gaps"], row.result["num_flagged"]) == ([], num)
        assert "8 alike make a gap" in row.result["explanation"]
        with sessions() as session:
            events = [event.message for event in list_events(session, row.id, after=0, limit=100)]
        assert row.result["explanation"] in events

    def test_a_few_ordinary_ones_of_each_domain_are_enough(
        self, traffic: Traffic, analyse: Analyse, belonging: Callable[[str], set[str]]
    ) -> None:
        traffic.ordinary(3)
        ids = set(traffic.send("chess_notation", 24, flagged=True))

        assert [belonging(gap["id"]) for gap in analyse()["gaps"]] == [ids]

    def test_too_few_to_compare_with_are_told(
        self, traffic: Traffic, run_job: Callable[[JobSpecBase], JobRow], sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary(1)
        traffic.send("chess_notation", 24, flagged=True)

        row = run_job(GapAnalysisJobSpec())

        with sessions() as session:
            [told] = [event.message for event in list_events(session, row.id) if "beside 5 ordinary" in event.message]
        assert "0 clusters" in told
        assert "hardly tell what is unlike them" in told

    def test_alike_prompts_all_the_same_are_one_gap(
        self, traffic: Traffic, analyse: Analyse, sessions: sessionmaker[Session]
    ) -> None:
        same = [traffic.prompts["law"][0]] * 20
        replace(traffic, prompts={"law": same}).send("law", 20, flagged=True)
        traffic.ordinary()

        [gap] = analyse()["gaps"]

        with sessions() as session:
            assert session.get_one(GapRow, gap["id"]).num_prompts == 20


class TestReport:
    def test_tells_what_is_to_be_known(self, traffic: Traffic, analyse: Analyse, gap: Callable[[str], GapRow]) -> None:
        traffic.ordinary()
        traffic.send("sql", 5, flagged=True, ago=timedelta(days=6))
        traffic.send("sql", 25, flagged=True)

        [found] = analyse()["gaps"]

        row = gap(found["id"])
        report = row.report
        assert (row.status, row.num_prompts, row.domain, row.release) == ("open", 30, "unknown", traffic.release)
        assert row.trend == pytest.approx(26 / 6)
        assert sum(report["trend"]["by_day"].values()) == 30
        assert {"select", "rows", "delete"} & set(row.keywords)
        assert len(report["typical_prompts"]) == 10
        texts = {prompt.text for prompt in traffic.prompts["sql"]}
        assert set(report["typical_prompts"]) <= texts
        losses = report["losses"]
        assert losses["mixture"]["low"] <= losses["mixture"]["mean"] <= losses["mixture"]["high"]
        assert losses["mixture"]["mean"] < losses["base"]["mean"]
        assert set(losses["known_domains"]) == set(KNOWN)
        assert losses["nats_above_known"] == pytest.approx(2.0, abs=0.1)
        assert report["nearest_expert"] == {"expert": "factual", "share": pytest.approx(0.4)}
        wanted = report["data_request"]
        assert 100 <= wanted["num_examples"] <= 500
        assert len(wanted["examples"]) == 5
        assert all(example["prompt"] in texts and example["completion"] for example in wanted["examples"])
        assert row.expert_name.endswith("_expert")

    def test_the_domain_that_most_were_taken_for_is_in_front_of_the_name(
        self, traffic: Traffic, analyse: Analyse, gap: Callable[[str], GapRow], sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        ids = traffic.send("sql", 20, flagged=True)
        with sessions.begin() as session:
            session.execute(update(RequestRow).where(RequestRow.id.in_(ids[:15])).values(domain="Code & Queries"))

        [found] = analyse()["gaps"]

        row = gap(found["id"])
        assert (row.domain, row.report["domain"]["share"]) == ("Code & Queries", 0.75)
        assert row.expert_name.startswith("code_queries_")

    def test_what_the_operator_redacts_is_not_repeated(
        self, traffic: Traffic, analyse: Analyse, gap: Callable[[str], GapRow]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True, suffix=" Write to jane.doe@wunderland.org or +44 20 7946 0958.")

        [found] = analyse()["gaps"]

        row = gap(found["id"])
        told = str(row.report) + str(row.keywords)
        assert "[redacted]" in told
        assert not any(secret in told for secret in ("jane", "wunderland", "7946"))

    def test_without_stored_prompts_there_are_neither_prompts_nor_keywords(
        self, traffic: Traffic, analyse: Analyse, gap: Callable[[str], GapRow]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True, stored=False)

        [found] = analyse()["gaps"]

        row = gap(found["id"])
        assert (row.keywords, row.report["typical_prompts"], row.report["prompts_are_kept"]) == ([], [], False)
        assert row.report["data_request"]["examples"] == []
        assert "not kept" in row.report["data_request"]["kind"]
        assert row.report["losses"]["mixture"] is not None
        assert row.expert_name.startswith("unknown_")

    def test_names_of_experts_and_other_gaps_are_not_proposed_again(
        self, traffic: Traffic, analyse: Analyse, gap: Callable[[str], GapRow], sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        traffic.send("recipes", 20, flagged=True)
        [first] = analyse()["gaps"]
        name = gap(first["id"]).expert_name
        with sessions.begin() as session:
            session.add(ExpertRow(name=name, domain=None))

        analyse()

        assert gap(first["id"]).expert_name == name.replace("_expert", "_2_expert")


class TestAgain:
    def test_the_same_requests_give_the_same_gap_and_new_ones_join_it(
        self,
        traffic: Traffic,
        analyse: Analyse,
        gap: Callable[[str], GapRow],
        belonging: Callable[[str], set[str]],
    ) -> None:
        traffic.ordinary()
        ids = traffic.send("law", 20, flagged=True, ago=timedelta(hours=3))
        [first] = analyse()["gaps"]
        before = gap(first["id"])

        [second] = analyse()["gaps"]
        after = gap(first["id"])
        more = traffic.send("law", 10, flagged=True)
        result = analyse()

        assert (second, result["gaps"], result["num_new"]) == (first, [first], 0)
        assert (after.num_prompts, after.keywords, after.expert_name) == (20, before.keywords, before.expert_name)
        assert gap(first["id"]).num_prompts == 30
        assert belonging(first["id"]) == {*ids, *more}

    def test_a_gap_is_known_again_when_its_first_requests_are_long_gone(
        self, traffic: Traffic, analyse: Analyse, sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True)
        traffic.send("sql", 20, flagged=True)
        first = analyse()["gaps"]
        with sessions.begin() as session:
            session.execute(
                update(RequestRow).where(RequestRow.flagged).values(at=datetime.now(UTC) - timedelta(days=30))
            )
        traffic.send("law", 20, flagged=True)
        traffic.send("chess_notation", 20, flagged=True)

        result = analyse()

        assert result["num_new"] == 1
        assert len({gap["id"] for gap in (*first, *result["gaps"])}) == 3

    def test_a_dismissed_gap_does_not_come_back(
        self, traffic: Traffic, analyse: Analyse, sessions: sessionmaker[Session], gap: Callable[[str], GapRow]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True)
        [first] = analyse()["gaps"]
        with sessions.begin() as session:
            dismiss_gap(session, first["id"])

        traffic.send("law", 10, flagged=True)
        result = analyse()

        assert [one["status"] for one in result["gaps"]] == ["dismissed"]
        assert gap(first["id"]).num_prompts == 20
        with sessions() as session:
            assert len(session.scalars(select(GapRow)).all()) == 1

    def test_a_merged_gaps_requests_go_to_the_other(
        self,
        traffic: Traffic,
        analyse: Analyse,
        sessions: sessionmaker[Session],
        gap: Callable[[str], GapRow],
        belonging: Callable[[str], set[str]],
    ) -> None:
        traffic.ordinary()
        ids = {*traffic.send("law", 20, flagged=True), *traffic.send("sql", 20, flagged=True)}
        source, target = (one["id"] for one in analyse()["gaps"])
        with sessions.begin() as session:
            merge_gap(session, source, target)
        ids |= {*traffic.send("law", 12, flagged=True), *traffic.send("sql", 12, flagged=True)}

        result = analyse()

        assert [one["id"] for one in result["gaps"]] == [target]
        assert belonging(target) == ids
        assert gap(target).num_prompts == 64
        assert (gap(source).status, gap(source).merged_into) == ("merged", target)

    def test_what_is_still_flagged_after_a_closing_is_a_new_gap_that_says_what_it_follows(
        self,
        traffic: Traffic,
        analyse: Analyse,
        sessions: sessionmaker[Session],
        gap: Callable[[str], GapRow],
        belonging: Callable[[str], set[str]],
    ) -> None:
        traffic.ordinary()
        ids = traffic.send("law", 20, flagged=True)
        [first] = analyse()["gaps"]
        late = traffic.send("law", 10, flagged=True)
        with sessions.begin() as session:
            close_gap(session, first["id"], job_id="job-1", release="release-2")

        quiet = analyse()
        with sessions.begin() as session:
            moment = datetime.now(UTC) - timedelta(hours=2)
            session.execute(update(GapRow).values(closed_at=moment))
        still = traffic.send("law", 12, flagged=True)
        result = analyse()

        assert [one["status"] for one in quiet["gaps"]] == ["closed"]
        assert belonging(first["id"]) == {*ids, *late}
        [new] = result["gaps"]
        assert belonging(new["id"]) == set(still)
        assert gap(new["id"]).follows == first["id"]

    def test_requests_of_another_base_model_are_not_looked_at(
        self, traffic: Traffic, analyse: Analyse, sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True)
        with sessions.begin() as session:
            session.execute(update(ReleaseRow).values(base_fingerprint="another"))

        assert analyse()["num_flagged"] == 0


class TestFaults:
    def test_a_job_that_is_lost_before_it_has_published_leaves_nothing_and_does_it_all_the_next_time(
        self, traffic: Traffic, runner: JobRunner, sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True)
        with sessions.begin() as session:
            job_id = create_job(session, GapAnalysisJobSpec()).id

        def broken(context: JobContext) -> Publish:
            publish = handler_of(JobKind.GAP_ANALYSIS)(context)

            def publish_and_fall(session: Session) -> dict[str, Any]:
                publish(session)
                raise KeyboardInterrupt

            return publish_and_fall

        with pytest.raises(KeyboardInterrupt):
            replace(runner, handlers=lambda _: broken).run(job_id)
        with sessions.begin() as session:
            left = session.scalars(select(GapRow)).all(), session.scalars(select(GapRequestRow)).all()
            row = find_job(session, job_id)
            row.status, row.owner, row.lease_expires_at = "queued", None, None
        runner.run(job_id)

        assert left == ([], [])
        with sessions() as session:
            assert find_job(session, job_id).status == "succeeded"
            assert [gap.num_prompts for gap in session.scalars(select(GapRow))] == [20]

    def test_two_analyses_that_have_seen_the_same_make_one_gap(
        self, traffic: Traffic, runner: JobRunner, sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        traffic.send("law", 20, flagged=True)
        with sessions.begin() as session:
            outer, inner = (create_job(session, GapAnalysisJobSpec()).id for _ in range(2))

        def overtaken(context: JobContext) -> Publish:
            publish = handler_of(JobKind.GAP_ANALYSIS)(context)
            runner.run(inner)
            return publish

        replace(runner, handlers=lambda _: overtaken).run(outer)

        with sessions() as session:
            results = [find_job(session, job_id).result or {} for job_id in (inner, outer)]
            assert len(session.scalars(select(GapRow)).all()) == 1
        assert [result["num_new"] for result in results] == [1, 0]

    def test_a_request_that_left_the_log_meanwhile_is_left_out(
        self, traffic: Traffic, runner: JobRunner, sessions: sessionmaker[Session]
    ) -> None:
        traffic.ordinary()
        ids = traffic.send("law", 20, flagged=True)
        with sessions.begin() as session:
            job_id = create_job(session, GapAnalysisJobSpec()).id

        def emptied(context: JobContext) -> Publish:
            publish = handler_of(JobKind.GAP_ANALYSIS)(context)
            with sessions.begin() as session:
                session.delete(session.get_one(RequestRow, ids[0]))
            return publish

        replace(runner, handlers=lambda _: emptied).run(job_id)

        with sessions() as session:
            assert find_job(session, job_id).status == "succeeded"
            assert set(session.scalars(select(GapRequestRow.request_id))) == set(ids[1:])
