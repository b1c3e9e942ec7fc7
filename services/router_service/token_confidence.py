"""How sure a calibrated release is before each token of an answer, kept up token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.router_service.catalog import LoadedRelease
from services.router_service.scoring import PromptScores
from services.shared.modeling.calibration import Calibration
from services.shared.modeling.column_scores import FilterState
from services.shared.modeling.confidence_features import Floats
from services.shared.modeling.release_scorer import ReleaseScorer


@dataclass
class TokenConfidence:
    """Over the calibration's window of the text so far: scores_TC and log_evidence_TC, and the router's state."""

    scorer: ReleaseScorer
    calibration: Calibration
    state: FilterState
    scores_TC: Floats
    log_evidence_TC: Floats | None

    @classmethod
    def of(cls, release: LoadedRelease | None, scores: PromptScores | None) -> "TokenConfidence | None":
        """At the end of a prompt. None without a calibration, and where the router reads hidden states."""
        if release is None or release.calibration is None or scores is None or scores.state is None:
            return None
        window = release.calibration.window
        evidence_TC = scores.log_evidence_TC
        return cls(
            release.scorer,
            release.calibration,
            scores.state.copy(),
            scores.scores_TC[-window:],
            None if evidence_TC is None else evidence_TC[-window:],
        )

    @property
    def confidence(self) -> float:
        """Of the token that comes next."""
        return float(self.calibration.confidence(self.scores_TC, self.log_evidence_TC)[-1])

    def advance(self, token_ids: Sequence[int]) -> None:
        """The text goes on with these tokens."""
        scores_TC, evidence_TC = self.scorer.advance_with_evidence(self.state, token_ids)
        self.scores_TC = self._joined(self.scores_TC, scores_TC)
        if self.log_evidence_TC is not None and evidence_TC is not None:
            self.log_evidence_TC = self._joined(self.log_evidence_TC, evidence_TC)

    def _joined(self, before_TC: Floats, after_TC: Floats) -> Floats:
        return np.concatenate([before_TC, after_TC])[-self.calibration.window :]
