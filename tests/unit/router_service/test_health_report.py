"""What the system says of itself, from what is known of its requests."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter

from services.router_service.health_report import Subject, make_report
from services.router_service.measured_losses import MeasuredLoss
from services.router_service.schemas.health_report import HealthReport, Problem, Suggestion
from services.router_service.usage import Failed, Spoken, Usage
from services.shared.schemas.jobs import JobSpec
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import JobKind, RouterKind

UNTIL = datetime(2026, 11, 21, tzinfo=UTC)
SINCE = UNTIL - timedelta(days=1)
NOON = UNTIL - timedelta(hours=12)
EXPERTS = {name: ExpertRef(name=name, version=1, digest=digit * 64) for name, digit in zip("abcd", "1234", strict=True)}
SUBJECT = Subject(
    release="release-1", experts=[EXPERTS[name] for name in "abc"], registered=EXPERTS, is_calibrated=True
)
FILE = f"file-{'0' * 32}"
FILLED: dict[str, Any] = {
    "training_file": FILE,
    "training_files": {"a": FILE},
    "held_out": {"a": FILE, "b": FILE},
}


def usage(**tokens: float) -> Usage:
    """100 requests of 10 tokens each, shared as `tokens` says; nothing else is known of them."""
    spoken = {name: Spoken(num_requests=10, num_tokens=number, last_at=NOON) for name, number in tokens.items()}
    return Usage(num_requests=100, num_tokens=1000, num_confident=100, num_unsure=10, spoken=spoken)


def report(subject: Subject = SUBJECT, known: Usage | None = None) -> HealthReport:
    found = known or usage(a=300.0, b=300.0, c=300.0, base=100.0)
    return make_report(subject, found, since=SINCE, until=UNTIL, max_requests=1000)


def kinds(made: HealthReport) -> set[JobKind]:
    return {suggestion.kind for suggestion in made.suggestions}


class TestExperts:
    def test_all_is_well_when_all_speak_alike(self) -> None:
        made = report()

        assert [expert.name for expert in made.experts] == ["a", "b", "c", "d"]
        assert made.load_imbalance == 0.0
        assert made.base_share == pytest.approx(0.1)
        assert (made.unhealthy, made.suggestions) == ([], [])
        # Registered, but not in the release: it had no occasion.
        assert made.unused == ["d"]
        assert not made.experts[-1].in_release

    def test_one_that_never_spoke_is_unused_and_wants_an_evaluation(self) -> None:
        made = report(known=usage(a=500.0, b=400.0, base=100.0))

        assert made.unused == ["c", "d"]
        assert kinds(made) == {JobKind.EVALUATION}
        assert made.suggestions[0].reason.startswith("c:")

    def test_few_requests_suggest_nothing_about_use(self) -> None:
        assert report(known=replace(usage(a=100.0), num_requests=49)).suggestions == []

    def test_imbalance_is_deviation_over_mean_and_wants_a_router(self) -> None:
        many = [ExpertRef(name=f"e{number}", version=1, digest="5" * 64) for number in range(10)]
        made = report(replace(SUBJECT, experts=many, registered={}), usage(e0=900.0))

        # One of n that does everything: sqrt(n - 1).
        assert made.load_imbalance == pytest.approx(3.0)
        assert JobKind.ROUTER in kinds(made)

    def test_one_that_fails_is_unhealthy_unless_it_has_spoken_since(self) -> None:
        known = usage(a=300.0, b=300.0, c=300.0)
        late, early = NOON + timedelta(hours=1), NOON - timedelta(hours=1)
        failed = {"a": Failed(3, late), "b": Failed(3, early), "d": Failed(1, early)}

        made = report(known=replace(known, failed=failed))

        assert made.unhealthy == ["a", "d"]
        assert {expert.name: expert.num_failed for expert in made.experts} == {"a": 3, "b": 3, "c": 0, "d": 1}

    def test_one_that_is_gone_or_worse_than_the_base_is_unhealthy(self) -> None:
        losses = {"a": MeasuredLoss(1.0, 2.0), "b": MeasuredLoss(2.1, 2.0)}

        made = report(replace(SUBJECT, missing={EXPERTS["c"].digest}, losses=losses))

        problems = {expert.name: expert.problems for expert in made.experts}
        assert problems["b"] == [Problem.WORSE_THAN_BASE]
        assert problems["c"] == [Problem.NOT_IN_STORAGE]
        assert made.unhealthy == ["b", "c"]
        assert [suggestion.spec["name"] for suggestion in made.suggestions] == ["b", "c"]


class TestUncertainty:
    @pytest.mark.parametrize(
        ("fields", "rate", "basis"),
        [
            ({"num_confident": 100, "num_unsure": 50}, 0.5, "confidence"),
            ({"num_confident": 100, "num_unsure": 50, "num_judged": 20, "num_flagged": 5}, 0.25, "flagged"),
            ({"num_confident": 0, "num_unsure": 0}, None, "confidence"),
        ],
        ids=["without a calibration", "with one", "nobody judged"],
    )
    def test_flags_count_where_there_are_any(self, fields: dict[str, int], rate: float | None, basis: str) -> None:
        made = report(known=replace(usage(a=300.0, b=300.0, c=300.0), **fields))

        assert (made.uncertainty.rate, made.uncertainty.basis) == (rate, basis)
        assert (JobKind.GAP_ANALYSIS in kinds(made)) is (rate == 0.5)

    @pytest.mark.parametrize(
        ("num_flagged", "num_judged", "drift"),
        [(0, 100, "below"), (1, 100, None), (40, 100, None), (60, 100, "above"), (20, 20, None)],
    )
    def test_a_rate_outside_of_its_band_is_told(self, num_flagged: int, num_judged: int, drift: str | None) -> None:
        known = replace(usage(a=300.0, b=300.0, c=300.0), num_judged=num_judged, num_flagged=num_flagged)
        made = report(replace(SUBJECT, flagged_band=(0.01, 0.5)), known)

        assert (made.uncertainty.band, made.uncertainty.drift) == ((0.01, 0.5), drift)
        assert (JobKind.CALIBRATION in kinds(made)) is (drift is not None)

    def test_a_release_without_calibration_wants_one(self) -> None:
        assert kinds(report(replace(SUBJECT, is_calibrated=False))) == {JobKind.CALIBRATION}


class TestSuggestions:
    @pytest.mark.parametrize("router_kind", list(RouterKind))
    def test_filled_in_they_are_jobs(self, router_kind: RouterKind) -> None:
        ten = [ExpertRef(name=f"e{number}", version=1, digest="5" * 64) for number in range(10)]
        subject = Subject(
            release="release-1",
            experts=ten,
            registered={},
            router_kind=router_kind,
            losses={"e0": MeasuredLoss(2.0, 1.0)},
        )
        made = report(subject, replace(usage(e0=900.0), num_unsure=90))

        assert kinds(made) == {
            JobKind.EXPERT, JobKind.CALIBRATION, JobKind.ROUTER, JobKind.GAP_ANALYSIS, JobKind.EVALUATION
        }  # fmt: skip
        for suggestion in made.suggestions:
            self.submit(suggestion)

    @staticmethod
    def submit(suggestion: Suggestion) -> None:
        body = {**suggestion.spec, **{name: FILLED[name] for name in suggestion.fill_in}}
        spec: Any = TypeAdapter(JobSpec).validate_python(body)
        spec.check()
        assert spec.kind is suggestion.kind

    def test_without_a_release_there_is_nothing_to_act_on(self) -> None:
        made = make_report(Subject(None, [], {}), Usage(), since=SINCE, until=UNTIL, max_requests=10)

        assert (made.release, made.suggestions, made.load_imbalance, made.base_share) == (None, [], None, None)
