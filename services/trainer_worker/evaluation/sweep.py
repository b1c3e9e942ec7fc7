"""The release's router with one thing changed at a time: other gates, other constants of its filter, other evidence."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.column_scores import BayesScores
from services.shared.modeling.gating import Gate
from services.shared.modeling.router_artifact import DEFAULT_TRUNK_WEIGHT, TRUNK_ALONE_WEIGHT
from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.schemas.evaluation import EvaluationJobSpec, EvidenceSum
from services.shared.vocabulary import GateType

_WEIGHTS: Final[Mapping[EvidenceSum, tuple[float, float]]] = {
    "bigram": (1.0, 0.0),
    "trunk": (0.0, TRUNK_ALONE_WEIGHT),
    "bigram+trunk": (1.0, DEFAULT_TRUNK_WEIGHT),
}
"""Of token pairs and of trunk states, as routers are made with."""


def gates(gate: Gate, spec: EvaluationJobSpec) -> dict[str, Gate]:
    """By name, in the order of the specification."""
    thresholds = {
        f"threshold {value:g}": replace(gate, gate_type=GateType.THRESHOLD, threshold=value)
        for value in spec.thresholds
    }
    return thresholds | {f"top-k {k}": replace(gate, gate_type=GateType.TOPK, max_experts=k) for k in spec.top_ks}


def filters(bayes_filter: BayesFilter | None, spec: EvaluationJobSpec) -> dict[str, BayesFilter]:
    """By name; the release's own constants are left out. None for a router without a filter."""
    if bayes_filter is None:
        return {}
    found = {f"stickiness {value:g}": replace(bayes_filter, stickiness=value) for value in spec.stickinesses} | {
        f"temper {value:g}": replace(bayes_filter, temper=value) for value in spec.tempers
    }
    return {name: one for name, one in found.items() if one != bayes_filter}


def evidences(
    own: BayesScores | None, trunk_rows: Mapping[int, DiscriminantRows], spec: EvaluationJobSpec
) -> dict[str, BayesScores]:
    """By name; what the release hears itself is left out. `trunk_rows` are by tap layer. None for a learned router."""
    if own is None:
        return {}
    found: dict[str, BayesScores] = {}
    for evidence in spec.evidence:
        bigram_weight, trunk_weight = _weights(own, evidence)
        weighed = replace(own, bigram_weight=bigram_weight, trunk_weight=trunk_weight, rows=None)
        if trunk_weight:
            found |= {f"{evidence}, tap {tap}": replace(weighed, rows=rows) for tap, rows in trunk_rows.items()}
        else:
            found[evidence] = weighed
    return {name: one for name, one in found.items() if _heard(one) != _heard(own)}


def _weights(own: BayesScores, evidence: EvidenceSum) -> tuple[float, float]:
    """The release's own where it sums the same."""
    standard = _WEIGHTS[evidence]
    its_own = (own.bigram_weight, own.trunk_weight)
    return its_own if [weight > 0 for weight in its_own] == [weight > 0 for weight in standard] else standard


def _heard(scores: BayesScores) -> tuple[float, float, int | None]:
    return scores.bigram_weight, scores.trunk_weight, scores.rows.tap_layer if scores.rows else None
