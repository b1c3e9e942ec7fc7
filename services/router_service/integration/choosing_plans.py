"""Who answers in each mode of integration: from the plan of the mixture to the plans of the answers. Pure.

An expert's score is its mean posterior over the prompt's tokens; the base model's column counts like any other.
"""

import numpy as np

from services.router_service.planning import plan_base
from services.router_service.schemas.generation import AnswerOptions
from services.router_service.scoring import PromptScores
from services.shared.schemas.sequences import RoutingPlan
from services.shared.vocabulary import BASE, PlanMode


def of_mixture(mixture: RoutingPlan, _scores: PromptScores | None, _options: AnswerOptions) -> list[RoutingPlan]:
    """The gate decides at every token."""
    return [mixture]


def of_single(mixture: RoutingPlan, scores: PromptScores | None, _options: AnswerOptions) -> list[RoutingPlan]:
    """Whoever scores best, from beginning to end."""
    return best_alone(mixture, scores, 1)


def of_ensemble(mixture: RoutingPlan, scores: PromptScores | None, options: AnswerOptions) -> list[RoutingPlan]:
    """The best-scoring ones, each alone."""
    return best_alone(mixture, scores, options.num_members)


def of_cascade(mixture: RoutingPlan, _scores: PromptScores | None, _options: AnswerOptions) -> list[RoutingPlan]:
    """The base model, then the mixture; the base alone where there is no mixture."""
    base = plan_base(mixture.release)
    return [base] if mixture.mode is PlanMode.BASE else [base, mixture]


def best_alone(mixture: RoutingPlan, scores: PromptScores | None, count: int) -> list[RoutingPlan]:
    """Plans of the `count` best-scoring candidates, the base among them, best first; without scores the base's."""
    if scores is None:
        return [plan_base(mixture.release)]
    means_C = scores.scores_TC.mean(axis=0)
    ranked = [scores.columns[column] for column in np.argsort(-means_C, kind="stable")]
    eligible = [name for name in ranked if name == BASE or name in mixture.candidates]
    return [_alone(mixture, name) for name in eligible[:count]]


def _alone(mixture: RoutingPlan, name: str) -> RoutingPlan:
    """One expert with weight 1, in the version that the release has; or the base."""
    if name == BASE:
        return plan_base(mixture.release)
    return RoutingPlan(
        mode=PlanMode.FIXED,
        release=mixture.release,
        experts=tuple(expert for expert in mixture.experts if expert.name == name),
        candidates=(name,),
        weights={name: 1.0},
    )
