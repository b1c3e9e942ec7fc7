"""Intervals against textbook values."""

import pytest

from services.trainer_worker.demo.intervals import paired_difference, wilson


class TestWilson:
    @pytest.mark.parametrize(
        ("num_right", "num_items", "low", "high"),
        [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
    )
    def test_agrees_with_published_values(self, num_right: int, num_items: int, low: float, high: float) -> None:
        estimate = wilson(num_right, num_items)

        assert estimate.low == pytest.approx(low, abs=1e-4)
        assert estimate.high == pytest.approx(high, abs=1e-4)


class TestPairedDifference:
    def test_is_exact_where_every_item_differs(self) -> None:
        estimate = paired_difference([True] * 50, [False] * 50)

        assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)

    def test_is_tighter_than_the_unpaired_interval_where_answers_agree(self) -> None:
        before = [True] * 50 + [False] * 150
        after = [True] * 100 + [False] * 100

        estimate = paired_difference(after, before)

        assert estimate.value == pytest.approx(0.25)
        assert 0.18 < estimate.low < 0.22
        assert 0.28 < estimate.high < 0.32
