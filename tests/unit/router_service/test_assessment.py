"""What a release says of a prompt before it answers."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from services.router_service.assessment import assess, domain_shares
from services.router_service.catalog import LoadedRelease
from services.router_service.planning import confidence_of
from services.router_service.scoring import PromptScores
from services.shared.modeling.calibration import Calibration
from services.shared.vocabulary import BASE, UNKNOWN

SURE, UNSURE = [0.9, 0.05, 0.05], [0.34, 0.33, 0.33]
COLUMNS = ("ada", "bob", BASE)


@dataclass(frozen=True)
class NoGate:
    """Nobody asks it."""

    def weights(self, scores_TC: Any, candidates: Any = None) -> Any:
        raise AssertionError


def prompt(*rows: list[float]) -> PromptScores:
    return PromptScores(COLUMNS, np.array(rows), NoGate())


def calibration(**fields: Any) -> Calibration:
    """Sure where the best score is high: one half at 0.5."""
    given = {
        "features": ("best_score",), "means": (0.5,), "scales": (0.1,), "weights": (1.0,), "intercept": 0.0,
        "window": 2, "threshold": 0.5, "false_flags": 0.05, "highest_excess": 0.1, "range_share": 0.95,
        "states_layer": 1,
    }  # fmt: skip
    return Calibration(**given | fields)


def release(calibrated: Calibration | None, domains: tuple[str, ...] = ("sums", "plays")) -> LoadedRelease:
    return LoadedRelease(
        id="release-1", number=1, base_fingerprint="0" * 64, router="0" * 64, graph=None, experts=(),
        scorer=None, domains=domains, calibration=calibrated,
    )  # type: ignore[arg-type]  # fmt: skip


def test_a_known_prompt_has_its_domain_with_a_probability() -> None:
    known = assess(release(calibration()), prompt(SURE, SURE))

    assert (known.domain, known.gap) == ("sums", False)
    assert known.confidence == pytest.approx(1 / (1 + np.exp(-4.0)))
    assert known.domain_probability == pytest.approx(known.confidence * 0.9)


def test_of_a_long_prompt_no_more_than_the_window_is_read() -> None:
    lengths = []

    class Listening(Calibration):
        def confidence(self, scores_TC: Any, log_evidence_TC: Any) -> Any:
            lengths.extend([len(scores_TC), len(log_evidence_TC)])
            return super().confidence(scores_TC, log_evidence_TC)

    listening = Listening(**calibration().model_dump())
    rows = [UNSURE] * 1000 + [SURE] * 2
    scores = replace(prompt(*rows), log_evidence_TC=np.array(rows))

    assert assess(release(listening), scores).confidence == pytest.approx(1 / (1 + np.exp(-4.0)))
    assert lengths == [2, 2]


def test_an_unknown_prompt_is_flagged() -> None:
    found = assess(release(calibration()), prompt(UNSURE, UNSURE))

    assert (found.domain, found.gap, found.is_gap) == (UNKNOWN, True, True)
    assert found.domain_probability == pytest.approx(1.0 - found.confidence)


def test_the_prompts_end_decides() -> None:
    assert assess(release(calibration()), prompt(UNSURE, UNSURE, SURE, SURE)).domain == "sums"
    assert assess(release(calibration()), prompt(SURE, SURE, UNSURE, UNSURE)).domain == UNKNOWN


def test_without_a_calibration_nothing_is_flagged() -> None:
    found = assess(release(None), prompt(UNSURE, UNSURE))

    assert (found.domain, found.gap, found.is_gap) == ("sums", None, False)
    assert found.confidence == confidence_of(np.array([UNSURE, UNSURE]))


def test_experts_of_one_domain_add_up_and_the_base_has_its_own() -> None:
    shares = domain_shares(release(None, ("prose", "prose")), np.array([[0.3, 0.3, 0.4]]))

    assert shares == pytest.approx({"prose": 0.6, BASE: 0.4})
