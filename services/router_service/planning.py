"""Who may speak in a request, and how sure the router is. Pure: values in, frozen values out.

Confidence is the mean, over the prompt's last tokens, of the largest score that any *expert* has there. It says how
well the text fits a domain that somebody was trained on. It is low for text that the base model answers itself,
however well it does so, and it is no probability that an answer is right.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from services.shared.errors import InvalidRequest
from services.shared.registry import unknown_expert
from services.shared.schemas.sequences import ExpertRef, RoutingPlan
from services.shared.vocabulary import BASE, PlanMode

Floats = npt.NDArray[np.float64]

CONFIDENCE_TOKENS: Final = 16
"""The prompt's end decides what comes next; its beginning may be of another domain."""


def plan_base(release: str | None) -> RoutingPlan:
    """The base model alone."""
    return RoutingPlan(mode=PlanMode.BASE, release=release)


def plan_fixed(
    weights: Mapping[str, float], registered: Mapping[str, ExpertRef], *, release: str | None
) -> RoutingPlan:
    """The request's own experts, newest versions, the same weights at every token; NotFound names close matches."""
    if set(weights) == {BASE}:
        return plan_base(release)
    if BASE in weights:
        raise InvalidRequest(
            "The base model always computes and takes no weight: give the experts' weights only.",
            param="parameters.experts",
        )
    for name in weights:
        if name not in registered:
            raise unknown_expert(name, list(registered))
    return RoutingPlan(
        mode=PlanMode.FIXED,
        release=release,
        experts=tuple(registered[name] for name in weights),
        candidates=tuple(weights),
        weights=dict(weights),
    )


def confidence_of(scores_TC: Floats) -> float:
    """How sure the router is, at the prompt's end, of a domain that has an expert; 0 without experts."""
    if scores_TC.shape[1] < 2:
        return 0.0
    return float(scores_TC[-CONFIDENCE_TOKENS:, :-1].max(axis=1).mean())
