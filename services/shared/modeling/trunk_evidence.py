"""Evidence from hidden states: discriminant rows in closed form, recomputed for whoever is in a release.

Linear discriminant analysis with a pooled covariance S (5 % shrunk towards its mean variance):
z_e(x) = m_e' S^-1 x - m_e' S^-1 m_e / 2, the log-density of x under expert e up to a term common to all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.shared.modeling.evidence_file import InvalidEvidence
from services.shared.modeling.trunk_statistics import TrunkStatistics

Floats = npt.NDArray[np.float64]

SHRINKAGE: Final = 0.05


@dataclass(frozen=True)
class DiscriminantRows:
    """One row per column of a gate: keys_CF and biases_C."""

    tap_layer: int
    hidden_size: int
    keys_CF: Floats
    biases_C: Floats

    @classmethod
    def of(cls, statistics: Sequence[TrunkStatistics]) -> "DiscriminantRows":
        """Rows for these members, every one with the same say in the covariance.

        Raises InvalidEvidence unless all were gathered at one tap of one base model.
        """
        first = statistics[0]
        if any((s.tap_layer, s.mean_F.shape) != (first.tap_layer, first.mean_F.shape) for s in statistics):
            raise InvalidEvidence(
                "Trunk evidence of one release must come from one tap layer of one base model: build it again."
            )
        means_CF = np.stack([s.mean_F for s in statistics])
        pooled_FF = np.mean([s.covariance_FF for s in statistics], axis=0)
        ridge = SHRINKAGE * np.trace(pooled_FF) / len(pooled_FF) + np.finfo(np.float64).tiny
        shrunk_FF = (1.0 - SHRINKAGE) * pooled_FF + ridge * np.eye(len(pooled_FF))
        keys_CF = np.linalg.solve(shrunk_FF, means_CF.T).T
        biases_C = -0.5 * (means_CF * keys_CF).sum(axis=1)
        return cls(first.tap_layer, first.hidden_size, keys_CF, biases_C)

    def log_evidence(self, smoothed_TF: Floats) -> Floats:
        """z_TC; only differences between columns mean anything."""
        return smoothed_TF @ self.keys_CF.T + self.biases_C
