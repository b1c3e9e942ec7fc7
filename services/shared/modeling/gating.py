"""The one gate: from scores over columns (experts, then the base) to the weights of those that speak (DESIGN D2)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.shared.vocabulary import GateType

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gate:
    """Which scores are kept.

    THRESHOLD keeps scores above `threshold`, the `max_experts` best experts among them; the base column costs
    nothing, so it is not counted. TOPK keeps the `max_experts` best columns, the base being one like any other.
    Equal scores rank by column, the lower first.
    """

    gate_type: GateType
    threshold: float
    max_experts: int

    def weigh(self, scores_TC: Floats, allowed_C: Mask | None = None) -> Floats:
        """Kept scores normalised per token, [T, C]; rows sum to 1; a row with nothing kept is the base alone."""
        eligible_TC = scores_TC > (self.threshold if self.gate_type == GateType.THRESHOLD else 0.0)
        if allowed_C is not None:
            eligible_TC &= allowed_C
        if self.gate_type == GateType.THRESHOLD:
            kept_TC = eligible_TC
            kept_TC[:, :-1] = best_columns(scores_TC[:, :-1], eligible_TC[:, :-1], self.max_experts)
        else:
            kept_TC = best_columns(scores_TC, eligible_TC, self.max_experts)
        return normalise_rows(np.where(kept_TC, scores_TC, 0.0))


def best_columns(scores_TC: Floats, eligible_TC: Mask, limit: int) -> Mask:
    """Marks the `limit` highest eligible scores of each row, [T, C]; ties go to the lower column."""
    if eligible_TC.shape[1] <= limit or int(eligible_TC.sum(axis=1).max(initial=0)) <= limit:
        return eligible_TC
    ranked_TC = np.argsort(np.where(eligible_TC, -scores_TC, np.inf), axis=1, kind="stable")
    kept_TC = np.zeros_like(eligible_TC)
    np.put_along_axis(kept_TC, ranked_TC[:, :limit], values=np.True_, axis=1)
    return kept_TC & eligible_TC


def normalise_rows(weights_TC: Floats) -> Floats:
    """Rows scaled to sum to 1; all-zero rows become the last column (the base) alone."""
    totals_T1 = np.add.reduce(weights_TC, axis=1, keepdims=True)
    empty_T = totals_T1[:, 0] <= 0.0
    if empty_T.any():
        weights_TC[empty_T, -1] = 1.0
        totals_T1[empty_T] = 1.0
    return weights_TC / totals_T1
