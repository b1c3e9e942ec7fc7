"""A release's calibration: from what its router knows of a text to the probability that its mixture knows the domain.

Confidence has a meaning: the estimated probability that the mixture's loss on what follows is inside the range measured
on the domains it knows, where loss is counted in excess of the best voice for the text (docs/decisions/0012). It is a
logistic regression on `confidence_features`, fitted on text whose own expert was left out of the mixture; a request
is flagged below a threshold that split-conformal prediction sets for a stated share of false flags.
"""

import json
import math
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.shared.errors import InvalidRequest
from services.shared.modeling.confidence_features import (
    EVIDENCE_FEATURES,
    SCORE_FEATURES,
    Floats,
    stacked,
    window_features,
)
from services.shared.modeling.release_scorer import ReleaseScorer

CALIBRATION_FILE: Final = "calibration.json"
_FORMAT: Final = 1
_STEEPEST: Final = 50.0
"""Beyond, a probability is 0 or 1 in any float."""


def available_features(scorer: ReleaseScorer) -> tuple[str, ...]:
    """What is known of a text under this router before the base model has read it."""
    hears_evidence = scorer.bayes is not None and scorer.tap_layer is None
    return (*SCORE_FEATURES, *(EVIDENCE_FEATURES if hears_evidence else ()))


class Frozen(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KnownDomain(Frozen):
    """What the release loses on a domain that it knows: means over its documents' continuations, nats per token.

    `highest_excess` is the range's end for this domain alone, `routed` the mixture's loss, `base` the base model's.
    """

    num_documents: int = Field(ge=0)
    routed: float
    base: float
    highest_excess: float


class Calibration(Frozen):
    """Weights of a logistic regression on standardised features, and the confidence under which a request is flagged.

    `highest_excess` ends the range that confidence speaks of: nats per token above the best voice's loss, which
    `range_share` of the known documents stay below. `false_flags` is the risk that the threshold was set for.
    """

    format: int = Field(default=_FORMAT, ge=_FORMAT, le=_FORMAT)
    features: tuple[str, ...] = Field(min_length=1)
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    window: int = Field(ge=1)
    threshold: float = Field(ge=0.0, le=1.0)
    false_flags: float = Field(gt=0.0, lt=1.0)
    highest_excess: float
    range_share: float = Field(gt=0.0, lt=1.0)
    states_layer: int = Field(ge=0)
    domains: dict[str, KnownDomain] = {}

    def confidence(self, scores_TC: Floats, log_evidence_TC: Floats | None) -> Floats:
        """The probability after each token, [T]; of a release that `check_fits`."""
        features = window_features(scores_TC, log_evidence_TC, window=self.window)
        standardised_TF = (stacked(features, self.features) - np.array(self.means)) / np.array(self.scales)
        logits_T = np.clip(standardised_TF @ np.array(self.weights) + self.intercept, -_STEEPEST, _STEEPEST)
        probabilities: Floats = 1.0 / (1.0 + np.exp(-logits_T))
        return probabilities

    def check_fits(self, scorer: ReleaseScorer) -> None:
        """Raise InvalidRequest for a release whose router does not give what is read here."""
        if missing := [name for name in self.features if name not in available_features(scorer)]:
            raise InvalidRequest(
                f"The release's router gives no {', '.join(missing)}, which its calibration reads: calibrate it again.",
                param="calibration",
                code="invalid_calibration",
            )

    def is_gap(self, confidence: float) -> bool:
        """Whether a request of this confidence is flagged."""
        return confidence < self.threshold

    def save(self, folder: Path) -> None:
        """Write it into the folder of an artifact."""
        (folder / CALIBRATION_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Calibration":
        """Read it; InvalidRequest when it is missing, damaged or of a later format."""
        try:
            found = cls.model_validate(json.loads((folder / CALIBRATION_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise InvalidRequest(
                f"{CALIBRATION_FILE} is missing or damaged ({type(error).__name__}): calibrate the release again.",
                code="invalid_calibration",
            ) from error
        lengths = {len(found.features), len(found.means), len(found.scales), len(found.weights)}
        if len(lengths) > 1 or not all(scale > 0.0 and math.isfinite(scale) for scale in found.scales):
            raise InvalidRequest(
                f"{CALIBRATION_FILE} is damaged: its numbers do not belong together. Calibrate the release again.",
                code="invalid_calibration",
            )
        return found
