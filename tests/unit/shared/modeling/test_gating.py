"""The one gate: thresholds, limits, ties, the base's own row."""

from collections.abc import Sequence

import numpy as np
import pytest

from services.shared.modeling.gating import Gate
from services.shared.vocabulary import GateType

THRESHOLD = Gate(GateType.THRESHOLD, 0.1, 2)
TOPK = Gate(GateType.TOPK, 0.1, 2)


def weights(gate: Gate, *scores: float, allowed: Sequence[bool] | None = None) -> list[float]:
    """One token's weights."""
    weights_TC = gate.weigh(np.array([scores]), None if allowed is None else np.array(allowed))
    return [float(weight) for weight in weights_TC[0]]


class TestThreshold:
    def test_keeps_what_is_above_and_normalises(self) -> None:
        assert weights(THRESHOLD, 0.6, 0.2, 0.1, 0.1) == pytest.approx([0.75, 0.25, 0.0, 0.0])

    def test_nothing_kept_is_the_base_alone(self) -> None:
        assert weights(Gate(GateType.THRESHOLD, 0.3, 4), 0.25, 0.25, 0.25, 0.25) == [0.0, 0.0, 0.0, 1.0]

    def test_keeps_the_best_when_more_pass_than_may_speak(self) -> None:
        assert weights(THRESHOLD, 0.2, 0.3, 0.5, 0.0) == pytest.approx([0.0, 0.375, 0.625, 0.0])

    def test_the_base_is_not_counted_as_an_expert(self) -> None:
        assert weights(THRESHOLD, 0.25, 0.25, 0.0, 0.5) == pytest.approx([0.25, 0.25, 0.0, 0.5])

    def test_sigmoid_scores_need_not_sum_to_one(self) -> None:
        assert weights(Gate(GateType.THRESHOLD, 0.3, 4), 0.9, 0.6, 0.2, 0.0) == pytest.approx([0.6, 0.4, 0.0, 0.0])


class TestTopk:
    def test_keeps_the_best_columns_however_low(self) -> None:
        assert weights(TOPK, 0.06, 0.02, 0.04, 0.01) == pytest.approx([0.6, 0.0, 0.4, 0.0])

    def test_the_base_is_a_column_like_any_other(self) -> None:
        assert weights(TOPK, 0.3, 0.1, 0.0, 0.6) == pytest.approx([1 / 3, 0.0, 0.0, 2 / 3])


class TestBoth:
    @pytest.mark.parametrize("gate", [THRESHOLD, TOPK], ids=["threshold", "topk"])
    def test_equal_scores_go_to_the_lower_columns(self, gate: Gate) -> None:
        assert weights(gate, 0.3, 0.3, 0.3, 0.0) == pytest.approx([0.5, 0.5, 0.0, 0.0])

    @pytest.mark.parametrize("gate", [THRESHOLD, TOPK], ids=["threshold", "topk"])
    def test_only_the_allowed_are_kept_and_share_the_rest(self, gate: Gate) -> None:
        assert weights(gate, 0.5, 0.2, 0.3, 0.0, allowed=[False, True, True, True]) == pytest.approx(
            [0.0, 0.4, 0.6, 0.0]
        )

    @pytest.mark.parametrize("gate", [THRESHOLD, TOPK], ids=["threshold", "topk"])
    def test_rows_sum_to_one_and_never_more_experts_speak_than_may(self, gate: Gate) -> None:
        scores_TC = np.random.default_rng(0).dirichlet(np.full(7, 0.4), size=500)

        weights_TC = gate.weigh(scores_TC)

        np.testing.assert_allclose(weights_TC.sum(axis=1), 1.0)
        assert ((weights_TC[:, :-1] > 0).sum(axis=1) <= 2).all()
        assert (weights_TC >= 0).all()

    @pytest.mark.parametrize("gate", [THRESHOLD, TOPK], ids=["threshold", "topk"])
    def test_a_token_does_not_care_who_stands_beside_it(self, gate: Gate) -> None:
        scores_TC = np.round(np.random.default_rng(1).dirichlet(np.full(9, 0.4), size=200), 1)

        alone_TC = np.concatenate([gate.weigh(row[None]) for row in scores_TC])

        assert np.array_equal(gate.weigh(scores_TC), alone_TC)
