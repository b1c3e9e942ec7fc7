"""What is known of a text before each token: windowed means, whatever came before the window."""

import numpy as np
import pytest

from services.shared.modeling.confidence_features import EVIDENCE_FEATURES, SCORE_FEATURES, stacked, window_features

RNG = np.random.default_rng(0)


def scores(num_tokens: int, num_columns: int) -> np.ndarray:
    return RNG.dirichlet(np.ones(num_columns), num_tokens)


@pytest.mark.parametrize(("num_tokens", "window"), [(1, 4), (4, 4), (9, 4), (5, 1)])
def test_each_row_is_what_its_window_alone_would_give(num_tokens: int, window: int) -> None:
    scores_TC, evidence_TC = scores(num_tokens, 4), -RNG.gamma(2.0, size=(num_tokens, 4))
    found = window_features(scores_TC, evidence_TC, window=window)

    for end in range(1, num_tokens + 1):
        inside = slice(max(0, end - window), end)
        part, evidence_C = scores_TC[inside], evidence_TC[inside].mean(axis=0)
        best, second = np.sort(evidence_C[:-1])[[-1, -2]]
        expected = {
            "best_score": part[:, :-1].max(axis=1).mean(),
            "base_score": part[:, -1].mean(),
            "score_entropy": -(part * np.log(part)).sum(axis=1).mean(),
            "log_tokens": np.log(len(part)),
            "likelihood": evidence_C.max(),
            "best_evidence": best,
            "evidence_gain": best - evidence_C[-1],
            "evidence_margin": best - second,
        }
        assert {name: values_T[end - 1] for name, values_T in found.items()} == pytest.approx(expected)


def test_without_evidence_scores_alone_are_told() -> None:
    assert tuple(window_features(scores(3, 3), None, window=2)) == SCORE_FEATURES


def test_one_expert_has_no_second_best_and_none_has_no_evidence() -> None:
    one = window_features(scores(3, 2), -np.ones((3, 2)), window=2)
    nobody = window_features(scores(3, 1), -np.ones((3, 1)), window=2)

    assert one["evidence_margin"].tolist() == [0.0, 0.0, 0.0]
    assert set(EVIDENCE_FEATURES).isdisjoint(nobody)
    assert nobody["best_score"].tolist() == [0.0, 0.0, 0.0]


def test_features_are_stacked_in_the_order_asked_for() -> None:
    features = {"b": np.array([1.0, 2.0]), "a": np.array([3.0, 4.0])}

    assert stacked(features, ("a", "b")).tolist() == [[3.0, 1.0], [4.0, 2.0]]
