"""A calibration as an artifact: what it says, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.shared.errors import InvalidRequest
from services.shared.modeling.calibration import CALIBRATION_FILE, Calibration, available_features
from services.shared.modeling.release_scorer import ReleaseScorer

FIELDS: dict[str, Any] = {
    "features": ("best_score", "log_tokens"),
    "means": (0.5, 1.0),
    "scales": (0.25, 2.0),
    "weights": (2.0, 0.0),
    "intercept": 0.5,
    "window": 4,
    "threshold": 0.3,
    "false_flags": 0.05,
    "highest_excess": 0.1,
    "range_share": 0.95,
    "states_layer": 1,
}


def logistic(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit)))


def test_confidence_is_the_logistic_of_standardised_features() -> None:
    scores_TC = np.array([[0.75, 0.25], [0.25, 0.75]])

    found_T = Calibration(**FIELDS).confidence(scores_TC, None)

    assert found_T.tolist() == pytest.approx([logistic(2.0 + 0.5), logistic(0.5)])


@pytest.mark.parametrize(("confidence", "is_gap"), [(0.29, True), (0.3, False), (1.0, False)])
def test_what_lies_below_the_threshold_is_flagged(confidence: float, is_gap: bool) -> None:
    assert Calibration(**FIELDS).is_gap(confidence) is is_gap


def test_extreme_numbers_stay_probabilities() -> None:
    steep = Calibration(**FIELDS | {"weights": (1e6, 0.0)})

    confidences = steep.confidence(np.array([[1.0, 0.0], [0.0, 1.0]]), None)

    assert np.isfinite(confidences).all()
    assert ((confidences >= 0.0) & (confidences <= 1.0)).all()


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    calibration = Calibration(**FIELDS)
    calibration.save(tmp_path)

    assert Calibration.load(tmp_path) == calibration


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"means": (0.5,)},
        {"scales": (0.0, 1.0)},
        {"threshold": 1.5},
        {"surprise": 1},
        {"features": ()},
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, damage: dict[str, Any]) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(FIELDS | damage))

    with pytest.raises(InvalidRequest, match="alibrate the release again"):
        Calibration.load(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="missing or damaged"):
        Calibration.load(tmp_path)


def test_a_router_that_does_not_give_a_feature_does_not_fit(demo_dir: Path) -> None:
    scorer = ReleaseScorer.load(
        router_dir=demo_dir / "router", graph_dir=None, experts=[], vocab_size=_vocabulary(demo_dir)
    )
    Calibration(**FIELDS).check_fits(scorer)

    stranger = Calibration(**FIELDS | {"features": ("best_score", "taste")})
    with pytest.raises(InvalidRequest, match="gives no taste"):
        stranger.check_fits(scorer)


def test_the_demos_calibration_fits_its_router(demo_dir: Path) -> None:
    scorer = ReleaseScorer.load(
        router_dir=demo_dir / "router", graph_dir=None, experts=[], vocab_size=_vocabulary(demo_dir)
    )
    calibration = Calibration.load(demo_dir / "calibration")

    calibration.check_fits(scorer)
    assert calibration.features == available_features(scorer)


def _vocabulary(demo_dir: Path) -> int:
    vocab_size = json.loads((demo_dir / "base" / "config.json").read_text())["vocab_size"]
    assert isinstance(vocab_size, int)
    return vocab_size
