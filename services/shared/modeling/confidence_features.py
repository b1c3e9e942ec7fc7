"""What a router knows of the text before each token, in numbers that do not depend on which experts a release has.

All are means over a window of the last tokens, so that the same function tells of a whole prompt (its last row) and of
every generated token. The window's length is a calibration's. Shape letters: T tokens, C columns, the base last.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SCORE_FEATURES: Final = ("best_score", "base_score", "score_entropy", "log_tokens")
"""From the gate's scores alone: any router has them."""
EVIDENCE_FEATURES: Final = ("likelihood", "best_evidence", "evidence_gain", "evidence_margin")
"""From the log-evidence that a Bayes filter is told: how likely the text is under the experts' evidence models."""


def window_features(scores_TC: Floats, log_evidence_TC: Floats | None, *, window: int) -> dict[str, Floats]:
    """Each feature after each token, [T]; those of evidence only where there is evidence.

    `best_score`: mean over the window of the largest score of an expert. `base_score`: mean score of the base column.
    `score_entropy`: mean entropy of the scores as a distribution, nats. `log_tokens`: log of the window's tokens.
    `likelihood`: log-likelihood of the text, nats per token, under the evidence model that likes it best, the base
    row's among them. `best_evidence`: the same among the experts'. `evidence_gain`: by how much that is more than under
    the base row's. `evidence_margin`: by how much more than under the second-best expert's; 0 with one expert.
    """
    shares_TC = scores_TC / np.maximum(scores_TC.sum(axis=1, keepdims=True), 1e-12)
    features = {
        "best_score": _window_means(scores_TC[:, :-1].max(axis=1, initial=0.0), window),
        "base_score": _window_means(scores_TC[:, -1], window),
        "score_entropy": _window_means(-(shares_TC * np.log(np.maximum(shares_TC, 1e-12))).sum(axis=1), window),
        "log_tokens": np.log(np.minimum(np.arange(1, len(scores_TC) + 1), window)),
    }
    if log_evidence_TC is not None and log_evidence_TC.shape[1] > 1:
        features |= _of_evidence(_window_means(log_evidence_TC, window))
    return features


def stacked(features: Mapping[str, Floats], names: tuple[str, ...]) -> Floats:
    """The named features side by side, [T, F]."""
    return np.stack([features[name] for name in names], axis=-1)


def _of_evidence(means_TC: Floats) -> dict[str, Floats]:
    experts_TE = np.sort(means_TC[:, :-1], axis=1)
    best_T = experts_TE[:, -1]
    return {
        "likelihood": means_TC.max(axis=1),
        "best_evidence": best_T,
        "evidence_gain": best_T - means_TC[:, -1],
        "evidence_margin": best_T - experts_TE[:, -2] if experts_TE.shape[1] > 1 else np.zeros_like(best_T),
    }


def _window_means(values_TX: Floats, window: int) -> Floats:
    """Means over each row and up to `window` - 1 rows before it."""
    sums = np.cumsum(values_TX, axis=0)
    sums[window:] -= sums[:-window].copy()
    counts_T = np.minimum(np.arange(1, len(values_TX) + 1), window)
    means: Floats = sums / counts_T.reshape(-1, *[1] * (values_TX.ndim - 1))
    return means
