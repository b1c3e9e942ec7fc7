"""How well a number tells unknown text from known."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from services.trainer_worker.calibration.detection import Detection, detection, summary


def test_a_number_that_separates_is_perfect() -> None:
    assert detection(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == Detection(1.0, 1.0, 1.0, 0.0)


def test_the_area_is_scikit_learns_ties_included() -> None:
    rng = np.random.default_rng(1)
    unknown_N, known_M = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 70).astype(float)
    labels = np.r_[np.ones(40), np.zeros(70)]

    found = detection(unknown_N, known_M)

    assert found.auroc == pytest.approx(roc_auc_score(labels, np.r_[unknown_N, known_M]))
    assert found.low < found.auroc < found.high


def test_a_number_that_says_nothing_is_at_one_half_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    found = detection(rng.normal(size=200), rng.normal(size=300))

    assert found.low < 0.5 < found.high
    assert found.fpr_at_95 > 0.8


def test_false_positives_are_counted_where_95_percent_are_found() -> None:
    unknown_N = np.r_[np.full(95, 2.0), np.full(5, 0.0)]
    known_M = np.r_[np.full(30, 3.0), np.full(70, 1.0)]

    assert detection(unknown_N, known_M).fpr_at_95 == pytest.approx(0.3)


def test_a_summary_has_the_mean_and_the_worst() -> None:
    found = summary({"a": Detection(0.9, 0.8, 1.0, 0.2), "b": Detection(0.7, 0.6, 0.8, 0.4)})

    assert (found["mean"], found["worst"], found["fpr_at_95"]) == pytest.approx((0.8, 0.7, 0.3))


def test_of_very_many_requests_some_are_drawn() -> None:
    rng = np.random.default_rng(0)
    unknown_N, known_M = rng.normal(1.0, size=4_000), rng.normal(size=20_000)

    tracemalloc.start()
    found = detection(unknown_N, known_M)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found.low < 0.7602 < found.high  # the normal distribution's share below 1 / sqrt(2)
    assert peak_bytes < 8 * len(unknown_N) * len(known_M) / 2
