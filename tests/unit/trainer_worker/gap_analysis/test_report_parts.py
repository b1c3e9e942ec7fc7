"""What a gap's report is made of: words, trend, losses, redaction, the data that is asked for."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from services.shared.config import GapSettings
from services.trainer_worker.gap_analysis.data_request import data_request, num_examples
from services.trainer_worker.gap_analysis.keywords import class_keywords
from services.trainer_worker.gap_analysis.losses import mean_nats
from services.trainer_worker.gap_analysis.redaction import Redaction
from services.trainer_worker.gap_analysis.trend import trend_of

MONDAY = datetime(2026, 11, 16, tzinfo=UTC)
WEEK = {"since": MONDAY, "until": MONDAY + timedelta(days=7)}


class TestKeywords:
    def test_words_of_one_group_and_not_of_the_others_come_first(self) -> None:
        groups = [["flour and sugar", "sugar, eggs and flour"], ["select rows", "delete rows and columns"]]

        food, tables = class_keywords(groups, ["and so they select what they like", "so and so"])

        assert food[:2] == ["flour", "sugar"]
        assert tables == ["rows"]

    def test_a_word_of_one_prompt_alone_is_not_told(self) -> None:
        [words] = class_keywords([["the secret is xyzzy", "no secret"]], [])

        assert words == ["secret"]

    @pytest.mark.parametrize("group", [[], ["", ""], ["12 34", "12 34"], ["the of", "the of"]])
    def test_of_no_words_there_are_none(self, group: list[str]) -> None:
        assert class_keywords([group], []) == [[]]


class TestTrend:
    def test_halves_and_days(self) -> None:
        trend = trend_of([MONDAY, MONDAY + timedelta(days=4), MONDAY + timedelta(days=4, hours=3)], **WEEK)

        assert trend.by_day == {"2026-11-16": 1, "2026-11-20": 2}
        assert (trend.num_first_half, trend.num_second_half, trend.ratio) == (1, 2, 1.5)

    @pytest.mark.parametrize(("num_early", "num_late", "ratio"), [(0, 9, 10.0), (9, 0, 0.1), (4, 4, 1.0)])
    def test_the_ratio_is_always_finite(self, num_early: int, num_late: int, ratio: float) -> None:
        moments = [MONDAY] * num_early + [MONDAY + timedelta(days=6)] * num_late

        assert trend_of(moments, **WEEK).ratio == pytest.approx(ratio)


class TestLosses:
    def test_the_interval_covers_the_mean_of_normal_values_as_their_own_would(self) -> None:
        values = np.random.default_rng(0).normal(3.0, 1.0, size=400)

        loss = mean_nats([*values, None, float("nan")], seed=0)

        assert loss is not None
        assert (loss["mean"], loss["num_requests"]) == (pytest.approx(values.mean()), 400)
        assert loss["high"] - loss["low"] == pytest.approx(2 * 1.96 / 20, rel=0.15)
        assert loss == mean_nats(values.tolist(), seed=0)

    @pytest.mark.parametrize("values", [[], [1.0], [None, None]])
    def test_what_was_not_measured_has_none(self, values: list[float | None]) -> None:
        assert mean_nats(values, seed=0) is None


class TestRedaction:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("ask jane.doe+x@mail.example.org now", "ask [redacted] now"),
            ("card 4111 1111 1111 1111.", "card [redacted]."),
            ("+49-30-1234567", "+[redacted]"),
            ("in 1984, 30 days, 123456", "in 1984, 30 days, 123456"),
            ("x" * 600, "x" * 499 + "…"),
        ],
    )
    def test_by_default_addresses_and_long_numbers(self, text: str, shown: str) -> None:
        assert Redaction(GapSettings().redact).shown(text) == shown

    def test_by_the_operators_own_rules(self) -> None:
        redaction = Redaction(GapSettings(redact=(r"(?i)project \w+",)).redact)

        assert redaction.shown(r"About Project Apollo \1, a@b.org") == r"About [redacted] \1, a@b.org"
        assert redaction.words_of("About Project Apollo") == "About  "

    def test_a_rule_that_is_none_is_refused_at_the_start(self) -> None:
        with pytest.raises(ValueError, match="no regular expression"):
            GapSettings(redact=("(",))

    def test_the_default_takes_its_time_with_nothing(self) -> None:
        text = "a" * 4000 + " " + "1 " * 2000

        assert len(Redaction(GapSettings().redact).words_of(text)) < len(text)


class TestDataRequest:
    @pytest.mark.parametrize(
        ("num_prompts", "above", "expected"),
        [(0, 0.0, 100), (0, -1.0, 100), (0, None, 200), (200, 2.0, 500), (9999, 9.9, 500), (100, 1.0, 300)],
    )
    def test_more_is_asked_for_what_is_harder_and_comes_more_often(
        self, num_prompts: int, above: float | None, expected: int
    ) -> None:
        assert num_examples(num_prompts, above) == expected

    def test_five_examples_of_the_form(self) -> None:
        request = data_request(
            keywords=["a", "b"], typical=[f"p{n}" for n in range(9)], num_prompts=20, nats_above_known=1.0
        )

        assert [example["prompt"] for example in request["examples"]] == ["p0", "p1", "p2", "p3", "p4"]
        assert all(set(example) == set(request["format"]) for example in request["examples"])
        assert "a, b" in request["kind"]
