"""What was planted is found within its interval, and what was not is not. The rates over many seeds are measured by
`benchmarks/trace_statistics.py`; the seeds here are fixed."""

import numpy as np
import pytest

from benchmarks.trace_statistics.planted_choices import planted
from services.traces.statistics.estimate import Estimate
from services.traces.statistics.layer_figures import layer_figures
from services.traces.statistics.permutations import DomainPermutations
from services.traces.statistics.repetition import random_repetition
from services.traces.statistics.resamples import Resamples
from services.traces.statistics.results import AnalysisOptions, LayerFigures
from services.traces.statistics.sequence_counts import sequence_counts
from services.traces.statistics.shuffles import Shuffles

OPTIONS = AnalysisOptions(num_permutations=199, num_resamples=299, num_matrix_resamples=100, max_shuffles=30)
DOMAINS = np.repeat(np.arange(4), 10)


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize(
    ("num_experts", "top_k", "expected"), [(8, 1, 0.125), (8, 2, 0.464), (32, 4, 0.431), (64, 8, 0.679)]
)
def test_random_repetition_is_that_of_mixtrals_table(num_experts: int, top_k: int, expected: float) -> None:
    assert random_repetition(num_experts, top_k) == pytest.approx(expected, abs=5e-4)


@pytest.fixture(scope="module")
def sticky() -> LayerFigures:
    choices = planted(domains=DOMAINS, num_tokens=120, seed=11, top_k=2, stickiness=0.3)
    return layer_figures(choices, num_domains=4, options=OPTIONS)


class TestStickiness:
    def test_repetition_is_found(self, sticky: LayerFigures) -> None:
        assert sticky.stickiness is not None
        assert sticky.repetition is not None

        assert covers(sticky.stickiness.repetition, 0.3 + 0.7 / 8)
        assert covers(sticky.stickiness.excess, 0.3 * (1 - 1 / 8))
        assert covers(sticky.repetition.first_or_second, 0.3 + 0.7 * random_repetition(8, 2))
        assert sticky.stickiness.repetition.p_value is not None
        assert sticky.stickiness.repetition.p_value < 1e-6

    def test_it_fades_as_a_chain_forgets(self, sticky: LayerFigures) -> None:
        assert sticky.autocorrelation is not None
        indicator = sticky.autocorrelation.indicator
        assert indicator.low is not None
        assert indicator.high is not None

        for lag in range(3):
            # Means of 120 tokens that depend on each other are off by a little, and so is what is taken off for them.
            assert (indicator.low[lag] or 0) - 0.02 <= 0.3 ** (lag + 1) <= (indicator.high[lag] or 0) + 0.02

    def test_the_chain_has_the_planted_eigenvalue(self, sticky: LayerFigures) -> None:
        assert sticky.transitions is not None
        second = sticky.transitions.second_eigenvalue
        assert second.value == pytest.approx(0.3, abs=0.05)
        assert second.null is not None
        assert second.null < 0.15
        assert second.low is None

    def test_runs_are_longer(self, sticky: LayerFigures) -> None:
        assert sticky.run_lengths is not None
        mean = sticky.run_lengths.mean
        repeated = 0.3 + 0.7 / 8
        # The ends of 120 tokens cut runs.
        assert covers(mean, 120 / (120 - 119 * repeated))


@pytest.fixture(scope="module")
def domestic() -> LayerFigures:
    choices = planted(domains=DOMAINS, num_tokens=120, seed=12, preference=0.2, prompt_spread=0.02)
    return layer_figures(choices, num_domains=4, options=OPTIONS)


@pytest.fixture(scope="module")
def shares() -> np.ndarray:
    """Of experts by domain, as planted."""
    return np.full((4, 8), 0.1) + 0.2 * np.eye(4, 8)


class TestDomains:
    def test_association_is_found(self, domestic: LayerFigures, shares: np.ndarray) -> None:
        assert domestic.independence is not None
        phi_square = np.sum((shares / 4) ** 2 / (0.25 * shares.mean(axis=0))) - 1

        assert covers(domestic.independence.cramers_v, np.sqrt(phi_square / 3))
        assert domestic.independence.cramers_v.p_value == pytest.approx(1 / 200)

    def test_information_is_found(self, domestic: LayerFigures, shares: np.ndarray) -> None:
        assert domestic.mutual_information is not None
        truth = np.sum(shares / 4 * np.log2(shares / shares.mean(axis=0)))

        assert covers(domestic.mutual_information.bits, truth)

    def test_each_domains_expert_is_named_and_no_other(self, domestic: LayerFigures) -> None:
        assert domestic.specialisation is not None
        lift = domestic.specialisation.lift
        assert lift.q_value is not None
        found = {(row, column) for row in range(4) for column in range(4)
                 if (lift.q_value[row][column] or 1) < 0.05 and (lift.value[row][column] or 0) > 1}  # fmt: skip

        assert found == {(domain, domain) for domain in range(4)}

    def test_a_topic_is_not_stickiness(self, domestic: LayerFigures) -> None:
        """Prompts with shares of their own repeat more than popularity says, and not more than their shuffles."""
        assert domestic.stickiness is not None
        assert domestic.stickiness.excess.low is not None
        assert domestic.stickiness.excess.low > 0
        assert covers(domestic.stickiness.excess_within, 0.0)


@pytest.fixture(scope="module")
def aimless() -> LayerFigures:
    choices = planted(domains=DOMAINS, num_tokens=120, seed=13, prompt_spread=0.05)
    return layer_figures(choices, num_domains=4, options=OPTIONS)


class TestNothing:
    """Prompts have shares of their own, as real ones do, and domains nothing to do with them."""

    def test_tokens_are_fooled_and_prompts_are_not(self, aimless: LayerFigures) -> None:
        assert aimless.independence is not None
        assert aimless.independence.token_p_value is not None
        assert aimless.independence.cramers_v.p_value is not None

        assert aimless.independence.token_p_value < 1e-6
        assert aimless.independence.cramers_v.p_value > 0.01

    def test_nothing_is_found(self, aimless: LayerFigures) -> None:
        assert aimless.mutual_information is not None
        assert aimless.stickiness is not None
        assert aimless.specialisation is not None
        assert aimless.specialisation.lift.q_value is not None

        assert (aimless.mutual_information.bits.p_value or 0) > 0.01
        assert (aimless.stickiness.repetition.p_value or 0) > 0.01
        assert all((q or 1) > 0.01 for row in aimless.specialisation.lift.q_value for q in row)


def test_shuffles_come_to_what_any_two_tokens_of_a_sequence_have() -> None:
    choices = planted(domains=np.zeros(3, dtype=np.int64), num_tokens=50, seed=14, stickiness=0.5)
    counts = sequence_counts(choices)
    expected = np.mean([(first * (first - 1)).sum() / (50 * 49) for first in counts.first_NE])
    shuffles = Shuffles(choices, max_shuffles=400, shuffled_tokens=10**6, seed=0)
    repeated = [
        np.mean([
            np.mean(order[1:] == order[:-1]) for order in choices.experts[shuffled, 0].reshape(3, 50)
        ])
        for shuffled in shuffles
    ]  # fmt: skip

    assert np.mean(repeated) == pytest.approx(expected, abs=4 * np.std(repeated) / np.sqrt(len(repeated)))
    assert all(np.array_equal(order // 50, np.repeat([0, 1, 2], 50)) for order in shuffles)


def test_draws_of_sequences_spread_as_means_do() -> None:
    values = np.random.default_rng(0).normal(size=(12, 1))
    resamples = Resamples(np.repeat([0, 1], 6), 2, num_resamples=20_000, max_groups=100, seed=0)
    drawn = resamples.totals(values)[:, 0] / 12

    expected = np.sqrt((values[:6].var(ddof=1) / 6 + values[6:].var(ddof=1) / 6) / 4)
    assert drawn.std() == pytest.approx(expected, rel=0.05)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)


def test_many_sequences_are_drawn_in_groups_with_the_same_spread() -> None:
    values = np.random.default_rng(1).normal(size=(3000, 1))
    spreads = [
        Resamples(np.arange(3000) % 3, 3, num_resamples=2000, max_groups=groups, seed=2).totals(values).std()
        for groups in (3000, 600)
    ]

    assert spreads[1] == pytest.approx(spreads[0], rel=0.15)


def test_permuted_domains_keep_every_sequence_whole() -> None:
    counts = np.arange(12.0).reshape(6, 2)
    permuted = DomainPermutations(np.array([0, 0, 1, 1, 1, 2]), 3, num_permutations=99, seed=0).by_domain(counts)

    np.testing.assert_allclose(permuted.sum(axis=1), np.tile(counts.sum(axis=0), (99, 1)))
    assert {tuple(row) for row in permuted[:, 2].tolist()} == {tuple(row) for row in counts.tolist()}
