"""Fit, threshold and reliability of a calibration."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from services.trainer_worker.calibration.fitting import (
    Bin,
    conformal_threshold,
    expected_calibration_error,
    fit,
    reliability,
)

RNG = np.random.default_rng(0)


def test_a_fit_gives_scikit_learns_probabilities() -> None:
    features_NF = RNG.normal(size=(60, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, 1.0]
    in_range_N = features_NF[:, 0] + RNG.normal(size=60) > 0.0
    weights_N = RNG.uniform(0.5, 2.0, 60)

    found_N = fit(features_NF, in_range_N, weights_N).confidence(features_NF)

    scaled_NF = StandardScaler().fit_transform(features_NF)
    model = LogisticRegression(max_iter=1000).fit(scaled_NF, in_range_N, sample_weight=weights_N)
    np.testing.assert_allclose(found_N, model.predict_proba(scaled_NF)[:, 1], atol=1e-6)


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.3])
def test_the_threshold_keeps_its_risk_on_average_over_calibrations(risk: float) -> None:
    flagged = []
    for _ in range(4000):
        confidences_N = RNG.beta(4.0, 1.0, 51)
        flagged.append(confidences_N[0] < conformal_threshold(confidences_N[1:], risk))

    assert np.mean(flagged) <= risk + 3 * np.sqrt(risk * (1 - risk) / 4000)
    assert np.mean(flagged) >= risk - 1 / 51 - 3 * np.sqrt(risk * (1 - risk) / 4000)


def test_too_few_known_requests_for_the_risk_flag_nothing() -> None:
    assert conformal_threshold(np.array([0.2, 0.9]), 0.05) == 0.0


def test_reliability_counts_documents_by_confidence() -> None:
    bins = reliability(np.array([0.05, 0.95, 1.0, 0.91]), np.array([False, True, True, False]))

    assert bins == [Bin(1, pytest.approx(0.05), 0.0), Bin(3, pytest.approx(2.86 / 3), pytest.approx(2 / 3))]
    assert expected_calibration_error(bins) == pytest.approx(0.25 * 0.05 + 0.75 * (2.86 / 3 - 2 / 3))
