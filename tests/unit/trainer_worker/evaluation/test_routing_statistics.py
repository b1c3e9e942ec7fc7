"""Load, imbalance and calibration, against figures worked out by hand."""

import numpy as np
import pytest
import torch

from services.trainer_worker.evaluation.routing_statistics import calibration, utilisation
from services.trainer_worker.evaluation.windows import Windows


def windows(domains_BT: list[list[int]]) -> Windows:
    domains = torch.tensor(domains_BT)
    return Windows(torch.zeros_like(domains), torch.full((len(domains),), domains.shape[1]), domains)


class TestUtilisation:
    def test_counts_weight_and_tokens_of_experts_and_base(self) -> None:
        weights_BTE = np.array([[[1.0, 0.0], [0.5, 0.0], [0.25, 0.75], [0.9, 0.1], [0.0, 0.0]]])

        used = utilisation(weights_BTE, windows([[0] * 5]))

        # The last token predicts nothing.
        assert used.weight_C == pytest.approx((2.65 / 4, 0.85 / 4, 0.5 / 4))
        assert used.tokens_C == pytest.approx((1.0, 0.5, 0.25))
        assert used.imbalance == pytest.approx(0.25 / 0.75)
        assert used.max_violation == pytest.approx(1.0 / 0.75 - 1)

    def test_of_a_silent_mixture_is_even(self) -> None:
        used = utilisation(np.zeros((1, 3, 2)), windows([[0] * 3]))

        assert (used.imbalance, used.max_violation) == (0.0, 0.0)
        assert used.weight_C == (0.0, 0.0, 1.0)


class TestCalibration:
    def test_is_the_mean_distance_of_confidence_and_accuracy(self) -> None:
        # Four tokens at .95, three of them right; four at .65, one of them right; the last predicts nothing.
        scores_BTC = np.array([[[0.95, 0.05]] * 4 + [[0.35, 0.65]] * 4 + [[1.0, 0.0]]])
        domains = [0, 0, 0, 1, 1, 0, 0, 0, 0]

        found = calibration(scores_BTC, windows([domains]))

        assert found.ece == pytest.approx(0.5 * abs(0.75 - 0.95) + 0.5 * abs(0.25 - 0.65))
        assert found.confidence == pytest.approx(0.8)
        assert found.accuracy == pytest.approx(0.5)
        assert [(one.low, one.share) for one in found.bins] == [(0.6, 0.5), (0.9, 0.5)]

    def test_of_certain_scores_counts_the_last_bin(self) -> None:
        found = calibration(np.array([[[1.0, 0.0]] * 3]), windows([[0] * 3]))

        assert found.ece == 0.0
        assert found.bins[0].high == 1.0
