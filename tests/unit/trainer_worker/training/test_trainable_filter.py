"""The filter with gradients against the one that serves."""

import numpy as np
import pytest
import torch

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.gating import Gate
from services.shared.vocabulary import GateType
from services.trainer_worker.training.trainable_filter import TrainableFilter

NUM_COLUMNS = 5


def evidence(seed: int = 0) -> np.ndarray:
    """Log-evidence of three documents that speak for one column, then for another."""
    log_evidence_BTC = np.random.default_rng(seed).normal(-4.0, 1.0, size=(3, 40, NUM_COLUMNS))
    log_evidence_BTC[:, :20, 1] += 2.0
    log_evidence_BTC[:, 20:, 3] += 2.0
    return log_evidence_BTC


class TestTrainableFilter:
    @pytest.mark.parametrize("gate_type", list(GateType))
    def test_gives_the_weights_that_serving_gives(self, gate_type: GateType) -> None:
        serving, gate = BayesFilter(NUM_COLUMNS, 0.01, 0.3), Gate(gate_type, 0.1, 2)

        weights_BTC = TrainableFilter(serving, gate)(torch.from_numpy(evidence()))

        expected_BTC = [gate.weigh(serving.advance(serving.start(), rows_TC)) for rows_TC in evidence()]
        np.testing.assert_allclose(weights_BTC.detach(), expected_BTC, atol=1e-6)

    def test_starts_with_the_constants_it_was_given(self) -> None:
        trainable = TrainableFilter(BayesFilter(NUM_COLUMNS, 0.005, 1.0), Gate(GateType.THRESHOLD, 0.1, 4))

        assert trainable.stickiness == pytest.approx(0.005)
        assert trainable.temper == pytest.approx(1.0, abs=2e-3)

    def test_learns_to_believe_tokens_more_where_that_is_right(self) -> None:
        trainable = TrainableFilter(BayesFilter(NUM_COLUMNS, 0.001, 0.05), Gate(GateType.THRESHOLD, 0.1, 4))
        optimizer = torch.optim.Adam(trainable.parameters(), lr=0.1)
        right_BTC = torch.zeros(3, 40, NUM_COLUMNS)
        right_BTC[:, :20, 1] = right_BTC[:, 20:, 3] = 1.0

        def loss() -> torch.Tensor:
            weights_BTC: torch.Tensor = trainable(torch.from_numpy(evidence()))
            return (weights_BTC - right_BTC).square().mean()

        before = float(loss().detach())
        for _ in range(30):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        assert float(loss().detach()) < before - 0.01
        assert trainable.temper > 0.05
        assert trainable.stickiness > 0.001

    def test_nothing_kept_is_the_base_alone(self) -> None:
        trainable = TrainableFilter(BayesFilter(NUM_COLUMNS, 0.005, 0.3), Gate(GateType.THRESHOLD, 0.9, 4))

        weights_BTC = trainable(torch.zeros(1, 3, NUM_COLUMNS))

        assert weights_BTC[0].tolist() == [[0.0, 0.0, 0.0, 0.0, 1.0]] * 3
