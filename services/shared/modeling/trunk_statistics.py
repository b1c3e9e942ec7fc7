"""Where an expert's text lies among the base model's early hidden states: count, mean and covariance."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.shared.modeling.evidence_file import InvalidEvidence, read_arrays, write_arrays

Floats = npt.NDArray[np.float64]
_KIND = "trunk statistics"


@dataclass(frozen=True)
class TrunkStatistics:
    """Moments of smoothed states (`SmoothedStates`) after `tap_layer` layers of a base model `hidden_size` wide."""

    tap_layer: int
    hidden_size: int
    count: int
    mean_F: Floats
    covariance_FF: Floats

    @classmethod
    def of(cls, smoothed: Iterable[Floats], *, tap_layer: int, hidden_size: int) -> "TrunkStatistics":
        """Moments over all rows of all [T, F] blocks. Raises InvalidEvidence for fewer than two rows."""
        rows_NF = np.concatenate(list(smoothed) or [np.empty((0, 1))])
        if len(rows_NF) < 2:
            raise InvalidEvidence(
                "The exemplars hold too little text for trunk evidence: supply at least some hundred tokens."
            )
        return cls(tap_layer, hidden_size, len(rows_NF), rows_NF.mean(axis=0), np.cov(rows_NF, rowvar=False, bias=True))

    def save(self, path: Path) -> None:
        """Write mean and covariance in float32."""
        arrays = {"mean": self.mean_F.astype(np.float32), "covariance": self.covariance_FF.astype(np.float32)}
        facts = {"kind": _KIND, "tap_layer": self.tap_layer, "hidden_size": self.hidden_size, "count": self.count}
        write_arrays(path, arrays, facts)

    @classmethod
    def load(cls, path: Path) -> "TrunkStatistics":
        """Read what `save` wrote. Raises InvalidEvidence when it contradicts itself."""
        arrays, facts = read_arrays(path, kind=_KIND)
        try:
            mean_F, covariance_FF = arrays["mean"].astype(np.float64), arrays["covariance"].astype(np.float64)
            tap_layer, hidden_size, count = (int(facts[key]) for key in ("tap_layer", "hidden_size", "count"))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidEvidence(f"{path.name} lacks {error}: build the evidence again.") from error
        is_finite = np.isfinite(mean_F).all() and np.isfinite(covariance_FF).all()
        if mean_F.ndim != 1 or covariance_FF.shape != (len(mean_F), len(mean_F)) or not is_finite:
            raise InvalidEvidence(f"{path.name} contradicts itself: build the evidence again.")
        return cls(tap_layer, hidden_size, count, mean_F, covariance_FF)
