"""The release's router with one constant changed at a time: other gates, other constants of its filter."""

from dataclasses import replace

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.gating import Gate
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.shared.vocabulary import GateType


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
