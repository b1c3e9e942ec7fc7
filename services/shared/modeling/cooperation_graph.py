"""Experts that were chosen recruit or inhibit partners: w' = w + w A (DESIGN D4), as serving applies it.

The networks that learn A are in `cooperation_network.py` (torch).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from services.shared.modeling.evidence_file import InvalidEvidence, read_arrays, write_arrays
from services.shared.modeling.gating import Mask, best_columns, normalise_rows

Floats = npt.NDArray[np.float64]
_KIND = "cooperation graph"


class GraphFile(BaseModel):
    """`graph.json`: the experts that the rows and columns of A stand for, and whether its measurement turned it on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    experts: tuple[str, ...]
    enabled: bool = False
    note: str = ""


@dataclass(frozen=True)
class CooperationGraph:
    """A_EE over named experts, zero diagonal; entry [i, j] is how much i's weight adds to j's."""

    experts: tuple[str, ...]
    adjacency_EE: Floats

    @property
    def sparsity(self) -> float:
        """Share of exact zeros among the off-diagonal entries (1.0 for a single expert)."""
        num_edges = len(self.experts) * (len(self.experts) - 1)
        return 1.0 - np.count_nonzero(self.adjacency_EE) / num_edges if num_edges else 1.0

    def over(self, experts: Sequence[str]) -> "CooperationGraph":
        """The same graph over another list of experts: unknown ones get no edge, missing ones lose theirs."""
        at = {name: index for index, name in enumerate(self.experts)}
        known = [(new, at[name]) for new, name in enumerate(experts) if name in at]
        adjacency_EE = np.zeros((len(experts), len(experts)))
        for row, old_row in known:
            for column, old_column in known:
                adjacency_EE[row, column] = self.adjacency_EE[old_row, old_column]
        return CooperationGraph(tuple(experts), adjacency_EE)

    def apply(self, weights_TC: Floats, *, max_experts: int, allowed_C: Mask | None = None) -> Floats:
        """w' = w + w A on the expert columns; positive ones kept, the `max_experts` best, rows renormalised.

        Tokens that A does not touch come back unchanged to the bit; A = 0 is exactly "no graph".
        """
        change_TE = np.zeros((len(weights_TC), len(self.experts)))
        # Source by source, not a matrix product: BLAS rounds differently for different numbers of tokens.
        for source in np.flatnonzero(self.adjacency_EE.any(axis=1)):
            change_TE += weights_TC[:, source : source + 1] * self.adjacency_EE[source]
        if allowed_C is not None:
            change_TE[:, ~allowed_C[:-1]] = 0.0
        touched_T = change_TE.any(axis=1)
        if not touched_T.any():
            return weights_TC
        moved_TC = weights_TC[touched_T]
        moved_TC[:, :-1] += change_TE[touched_T]
        kept_TE = best_columns(moved_TC[:, :-1], moved_TC[:, :-1] > 0.0, max_experts)
        moved_TC[:, :-1] = np.where(kept_TE, moved_TC[:, :-1], 0.0)
        result_TC = weights_TC.copy()
        result_TC[touched_T] = normalise_rows(moved_TC)
        return result_TC

    def save(self, folder: Path, *, enabled: bool = False, note: str = "") -> None:
        """Write the artifact: graph.json and graph.safetensors. `enabled` only if it beat its controls."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = GraphFile(experts=self.experts, enabled=enabled, note=note)
        (folder / "graph.json").write_text(facts.model_dump_json(indent=2) + "\n")
        write_arrays(folder / "graph.safetensors", {"adjacency": self.adjacency_EE.astype(np.float32)}, {"kind": _KIND})

    @classmethod
    def load(cls, folder: Path) -> "CooperationGraph":
        """Read the artifact. Raises InvalidEvidence when it is damaged."""
        try:
            facts = GraphFile.model_validate(json.loads((folder / "graph.json").read_text()))
        except (OSError, ValueError, ValidationError) as error:
            raise InvalidEvidence(f"graph.json is missing or damaged ({error}): build the graph again.") from error
        arrays, _ = read_arrays(folder / "graph.safetensors", kind=_KIND)
        adjacency_EE = arrays.get("adjacency", np.empty(0)).astype(np.float64)
        num_experts = len(facts.experts)
        if (
            adjacency_EE.shape != (num_experts, num_experts)
            or not np.isfinite(adjacency_EE).all()
            or np.diag(adjacency_EE).any()
        ):
            raise InvalidEvidence("graph.safetensors does not hold a square, finite matrix with a zero diagonal.")
        return cls(facts.experts, adjacency_EE)
