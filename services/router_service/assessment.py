"""What a release knows of a prompt: how sure it is of it, which domain it is of, and whether nobody knows it. Pure."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.router_service.catalog import LoadedRelease
from services.router_service.planning import confidence_of
from services.router_service.scoring import PromptScores
from services.shared.modeling.calibration import Calibration
from services.shared.modeling.confidence_features import Floats
from services.shared.vocabulary import BASE, UNKNOWN

_WINDOW: Final = 64
"""Tokens that name the domain where no calibration says how many."""


@dataclass(frozen=True)
class Assessment:
    """Of one prompt. `gap` is None, and `confidence` no probability, where the release has no calibration."""

    confidence: float
    domain: str
    domain_probability: float
    gap: bool | None
    states_layer: int | None = None
    """Where the calibration has flagged prompts' hidden states read; None without a calibration."""

    @property
    def is_gap(self) -> bool:
        """Whether it is flagged."""
        return self.gap is True


def assess(release: LoadedRelease, scores: PromptScores) -> Assessment:
    """The domain is the one whose experts have most of the posterior over the prompt's last tokens, or `base`.

    With a calibration its probability is that share times the confidence; a flagged prompt is `unknown` with what
    confidence leaves of 1.
    """
    calibration = release.calibration
    shares = domain_shares(release, scores.scores_TC[-(calibration.window if calibration else _WINDOW) :])
    domain = max(shares, key=shares.__getitem__)
    if calibration is None:
        return Assessment(confidence_of(scores.scores_TC), domain, shares[domain], gap=None)
    confidence = confidence_at_end(calibration, scores)
    if calibration.is_gap(confidence):
        return Assessment(confidence, UNKNOWN, 1.0 - confidence, gap=True, states_layer=calibration.states_layer)
    return Assessment(confidence, domain, confidence * shares[domain], gap=False, states_layer=calibration.states_layer)


def confidence_at_end(calibration: Calibration, scores: PromptScores) -> float:
    """Of what follows the prompt, whatever its length: no more of it than the window is read."""
    window, evidence_TC = calibration.window, scores.log_evidence_TC
    last_TC = evidence_TC[-window:] if evidence_TC is not None else None
    return float(calibration.confidence(scores.scores_TC[-window:], last_TC)[-1])


def domain_shares(release: LoadedRelease, scores_TC: Floats) -> dict[str, float]:
    """Mean share of the scores by domain, `base` included; experts of one domain add up. They sum to 1."""
    means_C = np.maximum(scores_TC.mean(axis=0), 1e-12)
    shares: defaultdict[str, float] = defaultdict(float)
    for domain, share in zip((*release.domains, BASE), (means_C / means_C.sum()).tolist(), strict=True):
        shares[domain] += share
    return dict(shares)
