"""Running averages of the base model's early hidden states: what a gate may know of the context so far."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DECAYS: Final = (0.8, 0.95)
"""Two memories, of about 5 and 20 tokens: one follows switches, one is steady (docs/EXPERIMENTS.md)."""

MAX_FEATURES: Final = 256
_PROJECTION_SEED: Final = 20240229


@dataclass
class SmoothedStates:
    """Exponential moving averages of one sequence's states; mutable, copied with the sequence.

    Averages are divided by 1 - decay^n (n tokens so far), so early ones are not drawn towards zero.
    """

    averages_MP: Floats
    num_tokens: int = 0

    @classmethod
    def start(cls, hidden_size: int) -> "SmoothedStates":
        """The state before any token; states wider than 256 are projected to that many features."""
        return cls(np.zeros((len(DECAYS), min(hidden_size, MAX_FEATURES))))

    def copy(self) -> "SmoothedStates":
        """An independent twin."""
        return SmoothedStates(self.averages_MP.copy(), self.num_tokens)

    def advance(self, states_TD: npt.NDArray[np.floating]) -> Floats:
        """Take T more states; returns what is known after each, [T, F] with F = 2 min(D, 256)."""
        features_TP = project(states_TD)
        decays_M1 = np.array(DECAYS)[:, None]
        smoothed_TF = np.empty((len(features_TP), self.averages_MP.size))
        for row_F, features_P in zip(smoothed_TF, features_TP, strict=True):
            self.num_tokens += 1
            self.averages_MP *= decays_M1
            self.averages_MP += (1.0 - decays_M1) * features_P
            row_F[:] = (self.averages_MP / (1.0 - decays_M1**self.num_tokens)).ravel()
        return smoothed_TF


def project(states_TD: npt.NDArray[np.floating]) -> Floats:
    """States as features, [T, P]: as they are up to 256 wide, else through one fixed random orthonormal map."""
    hidden_size = states_TD.shape[-1]
    if hidden_size <= MAX_FEATURES:
        return states_TD.astype(np.float64)
    return states_TD.astype(np.float64) @ projection(hidden_size)


_projections: dict[int, Floats] = {}


def projection(hidden_size: int) -> Floats:
    """The fixed map [D, 256] for a hidden size: the same in every process, since it follows from a seed."""
    if hidden_size not in _projections:
        normal_DP = np.random.default_rng(_PROJECTION_SEED).standard_normal((hidden_size, MAX_FEATURES))
        _projections[hidden_size] = np.linalg.qr(normal_DP)[0]
    return _projections[hidden_size]
