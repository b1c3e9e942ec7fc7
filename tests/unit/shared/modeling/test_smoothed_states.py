"""Running averages against their definition, and the discriminant rows that are read off them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

from services.shared.modeling.evidence_file import InvalidEvidence
from services.shared.modeling.smoothed_states import DECAYS, MAX_FEATURES, SmoothedStates, project
from services.shared.modeling.trunk_evidence import SHRINKAGE, DiscriminantRows
from services.shared.modeling.trunk_statistics import TrunkStatistics


def random_states(num_tokens: int, hidden_size: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_tokens, hidden_size)).astype(np.float32)


def statistics(seed: int, num_features: int = 4, tap_layer: int = 1) -> TrunkStatistics:
    generator = np.random.default_rng(seed)
    rows_NF = generator.normal(size=(500, num_features)) @ generator.normal(size=(num_features, num_features))
    return TrunkStatistics.of([rows_NF[:200] + seed, rows_NF[200:] + seed], tap_layer=tap_layer, hidden_size=2)


class TestSmoothedStates:
    def test_is_the_weighted_mean_of_what_was_read(self) -> None:
        states_TD = random_states(30)

        smoothed_TF = SmoothedStates.start(5).advance(states_TD)

        for t in (0, 1, 29):
            for memory, decay in enumerate(DECAYS):
                weights_T = decay ** np.arange(t, -1, -1.0)
                expected_D = (weights_T[:, None] * states_TD[: t + 1]).sum(axis=0) / weights_T.sum()
                assert_allclose(smoothed_TF[t, memory * 5 : memory * 5 + 5], expected_D, rtol=1e-9)

    def test_cutting_a_text_changes_no_bit(self) -> None:
        states_TD = random_states(40)
        whole_TF = SmoothedStates.start(5).advance(states_TD)

        smoothed = SmoothedStates.start(5)
        parts = [smoothed.advance(states_TD[:13]), smoothed.advance(states_TD[13:14]), smoothed.advance(states_TD[14:])]

        assert np.array_equal(np.concatenate(parts), whole_TF)

    def test_a_copy_goes_its_own_way(self) -> None:
        smoothed = SmoothedStates.start(5)
        smoothed.advance(random_states(10))
        twin = smoothed.copy()

        smoothed.advance(random_states(10, seed=1))

        assert twin.num_tokens == 10
        assert not np.array_equal(twin.averages_MP, smoothed.averages_MP)

    def test_wide_states_are_projected_and_keep_their_distances(self) -> None:
        states_TD = random_states(50, hidden_size=1024)

        features_TP = project(states_TD)

        assert features_TP.shape == (50, MAX_FEATURES)
        before = np.linalg.norm(states_TD[0] - states_TD[1:], axis=1)
        after = np.linalg.norm(features_TP[0] - features_TP[1:], axis=1) * np.sqrt(1024 / MAX_FEATURES)
        assert_allclose(after, before, rtol=0.2)


class TestDiscriminantRows:
    def test_differ_like_gaussian_log_densities_of_one_covariance(self) -> None:
        members = [statistics(seed) for seed in range(3)]
        points_TF = np.random.default_rng(9).normal(size=(20, 4))

        evidence_TC = DiscriminantRows.of(members).log_evidence(points_TF)

        pooled_FF = np.mean([member.covariance_FF for member in members], axis=0)
        shrunk_FF = (1 - SHRINKAGE) * pooled_FF + SHRINKAGE * np.trace(pooled_FF) / 4 * np.eye(4)
        densities_TC = np.stack(
            [multivariate_normal(member.mean_F, shrunk_FF).logpdf(points_TF) for member in members], axis=1
        )
        assert_allclose(np.diff(evidence_TC, axis=1), np.diff(densities_TC, axis=1), rtol=1e-8)

    def test_members_of_different_taps_are_refused(self) -> None:
        with pytest.raises(InvalidEvidence, match="one tap layer"):
            DiscriminantRows.of([statistics(0), statistics(1, tap_layer=2)])


class TestTrunkStatistics:
    def test_survive_the_trip_through_a_file(self, tmp_path: Path) -> None:
        before = statistics(3)

        before.save(tmp_path / "trunk.safetensors")
        after = TrunkStatistics.load(tmp_path / "trunk.safetensors")

        assert (after.tap_layer, after.hidden_size, after.count) == (1, 2, 500)
        assert_allclose(after.mean_F, before.mean_F, rtol=1e-6)
        assert_allclose(after.covariance_FF, before.covariance_FF, rtol=1e-5, atol=1e-6)

    def test_need_more_than_one_token(self) -> None:
        with pytest.raises(InvalidEvidence, match="too little text"):
            TrunkStatistics.of([], tap_layer=0, hidden_size=2)

    def test_a_matrix_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        damaged = TrunkStatistics(1, 2, 10, np.zeros(4), np.zeros((3, 3)))
        damaged.save(tmp_path / "trunk.safetensors")

        with pytest.raises(InvalidEvidence, match="contradicts itself"):
            TrunkStatistics.load(tmp_path / "trunk.safetensors")
