"""The learned router as serving applies it (numpy); `learned_router.py` is the network that is trained (torch)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.shared.modeling.evidence_file import InvalidEvidence, read_arrays, write_arrays
from services.shared.vocabulary import GateType

Floats = npt.NDArray[np.float64]
_KIND = "learned router"
_NAMES = ("mean", "scale", "hidden_weight", "hidden_bias", "score_weight", "score_bias")


@dataclass(frozen=True)
class LearnedGate:
    """Two layers with a ReLU between, on standardised smoothed states: logits over columns."""

    mean_F: Floats
    scale_F: Floats
    hidden_weight_HF: Floats
    hidden_bias_H: Floats
    score_weight_CH: Floats
    score_bias_C: Floats

    def logits(self, smoothed_TF: Floats) -> Floats:
        """Raw scores, [T, C]."""
        hidden_TH = (smoothed_TF - self.mean_F) * self.scale_F @ self.hidden_weight_HF.T + self.hidden_bias_H
        return np.maximum(hidden_TH, 0.0) @ self.score_weight_CH.T + self.score_bias_C

    def scores(self, smoothed_TF: Floats, gate_type: GateType) -> Floats:
        """Sigmoids for the threshold gate, softmax over columns for top-k (the requirements' two router types)."""
        return score_logits(self.logits(smoothed_TF), gate_type)

    def select(self, columns: list[int]) -> "LearnedGate":
        """The same network with only these columns, in this order."""
        return LearnedGate(
            self.mean_F,
            self.scale_F,
            self.hidden_weight_HF,
            self.hidden_bias_H,
            self.score_weight_CH[columns],
            self.score_bias_C[columns],
        )

    def save(self, path: Path) -> None:
        """Write the arrays in float32."""
        arrays = dict(zip(_NAMES, self._arrays(), strict=True))
        write_arrays(path, {name: array.astype(np.float32) for name, array in arrays.items()}, {"kind": _KIND})

    @classmethod
    def load(cls, path: Path) -> "LearnedGate":
        """Read what `save` wrote. Raises InvalidEvidence when shapes do not fit together."""
        arrays, _ = read_arrays(path, kind=_KIND)
        try:
            gate = cls(*(arrays[name].astype(np.float64) for name in _NAMES))
        except KeyError as error:
            raise InvalidEvidence(f"{path.name} lacks {error}: train the router again.") from error
        num_hidden, num_features, num_columns = len(gate.hidden_bias_H), len(gate.mean_F), len(gate.score_bias_C)
        shapes = [array.shape for array in gate._arrays()]
        expected = [
            (num_features,),
            (num_features,),
            (num_hidden, num_features),
            (num_hidden,),
            (num_columns, num_hidden),
            (num_columns,),
        ]
        if shapes != expected or not all(np.isfinite(array).all() for array in gate._arrays()):
            raise InvalidEvidence(f"{path.name} contradicts itself: train the router again.")
        return gate

    def _arrays(self) -> tuple[Floats, ...]:
        return (
            self.mean_F,
            self.scale_F,
            self.hidden_weight_HF,
            self.hidden_bias_H,
            self.score_weight_CH,
            self.score_bias_C,
        )


def score_logits(logits_TC: Floats, gate_type: GateType) -> Floats:
    """Sigmoid per column (threshold) or softmax over columns (top-k), without overflow."""
    if gate_type == GateType.THRESHOLD:
        return 0.5 * (1.0 + np.tanh(0.5 * logits_TC))
    exponentials_TC: Floats = np.exp(logits_TC - logits_TC.max(axis=-1, keepdims=True))
    totals_T1: Floats = exponentials_TC.sum(axis=-1, keepdims=True)
    return exponentials_TC / totals_T1
