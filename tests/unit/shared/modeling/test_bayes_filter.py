"""The filter against the definition, toy posteriors worked out by hand, and batch against sequence."""

from collections.abc import Sequence

import numpy as np
import pytest

from services.shared.modeling.bayes_filter import BayesFilter


def slow_twin(prior_C: Sequence[float], log_evidence_TC: np.ndarray, stickiness: float, temper: float) -> np.ndarray:
    """The two lines of the definition, one column at a time."""
    posterior_C, rows = list(prior_C), []
    for log_evidence_C in log_evidence_TC:
        moved_C = [(1 - stickiness) * p + stickiness / len(posterior_C) for p in posterior_C]
        raised_C = [p * np.exp(log_p) ** temper for p, log_p in zip(moved_C, log_evidence_C, strict=True)]
        posterior_C = [p / sum(raised_C) for p in raised_C]
        rows.append(posterior_C)
    return np.array(rows)


class TestBayesFilter:
    def test_equals_the_definition_written_out(self) -> None:
        log_evidence_TC = np.random.default_rng(0).normal(-3.0, 1.5, size=(200, 5))
        bayes_filter = BayesFilter(5, stickiness=0.005, temper=0.3)

        posterior_TC = bayes_filter.advance(bayes_filter.start(), log_evidence_TC)

        expected_TC = slow_twin([0.2] * 5, log_evidence_TC, 0.005, 0.3)
        np.testing.assert_allclose(posterior_TC, expected_TC, rtol=1e-10)

    def test_two_coins_give_the_posterior_of_bayes_rule(self) -> None:
        # Untempered and (almost) never switching: after "heads", 0.9 against 0.3 becomes 3 to 1.
        bayes_filter = BayesFilter(2, stickiness=1e-12, temper=1.0)

        posterior_TC = bayes_filter.advance(bayes_filter.start(), np.log([[0.9, 0.3], [0.1, 0.7]]))

        np.testing.assert_allclose(posterior_TC, [[3 / 4, 1 / 4], [0.3 / 1.0, 0.7 / 1.0]], rtol=1e-9)

    def test_without_evidence_everything_stays_equal(self) -> None:
        bayes_filter = BayesFilter(4, stickiness=0.005, temper=0.3)

        posterior_TC = bayes_filter.advance(bayes_filter.start(), np.full((50, 4), -7.0))

        np.testing.assert_allclose(posterior_TC, 0.25)

    def test_forgets_a_certainty_when_the_domain_changes(self) -> None:
        bayes_filter = BayesFilter(2, stickiness=0.005, temper=0.3)
        first, second = [0.0, -3.0], [-3.0, 0.0]

        posterior_TC = bayes_filter.advance(bayes_filter.start(), np.array([first] * 200 + [second] * 10))

        assert posterior_TC[199, 0] > 0.99
        assert posterior_TC[-1, 1] > 0.9

    def test_survives_evidence_beyond_the_range_of_floats(self) -> None:
        bayes_filter = BayesFilter(3, stickiness=0.005, temper=1.0)

        posterior_TC = bayes_filter.advance(bayes_filter.start(), np.array([[-1e6, 0.0, -1e5], [0.0, -1e6, -1e6]]))

        assert np.isfinite(posterior_TC).all()
        np.testing.assert_allclose(posterior_TC.sum(axis=1), 1.0)
        assert posterior_TC[1, 0] > 0.99

    @pytest.mark.parametrize("num_columns", [2, 5, 7, 8, 9, 16, 17, 65, 130])
    @pytest.mark.parametrize("num_sequences", [1, 3, 16])
    def test_a_batch_gives_the_same_bits_as_each_sequence_alone(self, num_columns: int, num_sequences: int) -> None:
        bayes_filter = BayesFilter(num_columns, stickiness=0.005, temper=0.3)
        log_evidence_BTC = np.random.default_rng(1).normal(-4.0, 2.0, size=(num_sequences, 40, num_columns))
        alone_BTC = np.stack([bayes_filter.advance(bayes_filter.start(), rows) for rows in log_evidence_BTC])

        posterior_BC = np.stack([bayes_filter.start()] * num_sequences)
        for t in range(40):
            posterior_BC = bayes_filter.advance_batch(posterior_BC, np.ascontiguousarray(log_evidence_BTC[:, t]))
            assert np.array_equal(posterior_BC, alone_BTC[:, t])

    def test_cutting_a_text_changes_no_bit(self) -> None:
        bayes_filter = BayesFilter(6, stickiness=0.005, temper=0.3)
        log_evidence_TC = np.random.default_rng(2).normal(size=(97, 6))
        whole_TC = bayes_filter.advance(bayes_filter.start(), log_evidence_TC)

        first_TC = bayes_filter.advance(bayes_filter.start(), log_evidence_TC[:31])
        second_TC = bayes_filter.advance(first_TC[-1], log_evidence_TC[31:])

        assert np.array_equal(np.concatenate([first_TC, second_TC]), whole_TC)
