"""Who answers in each mode."""

from typing import Any

import numpy as np
import pytest

from services.router_service.integration.choosing_plans import of_cascade, of_ensemble, of_mixture, of_single
from services.router_service.planning import plan_base
from services.router_service.schemas.generation import AnswerOptions, Integration
from services.router_service.scoring import PromptScores
from services.shared.schemas.sequences import ExpertRef, RoutingPlan
from services.shared.vocabulary import PlanMode

OPTIONS = AnswerOptions(integration=Integration.ENSEMBLE, ensemble_size=2)
MIXTURE = RoutingPlan(
    mode=PlanMode.ROUTED,
    release="release-1",
    router="f" * 64,
    experts=tuple(ExpertRef(name=name, version=2, digest=name * 64) for name in "abcd"),
    candidates=("b", "a", "c"),
)
BASE_PLAN = plan_base("release-1")


def scores(*rows: tuple[float, ...]) -> PromptScores:
    """Of tokens over a, b, c, d and the base."""
    gate: Any = None  # which scores are kept does not matter here
    return PromptScores((*"abcd", "base"), np.array(rows), gate)


def names(plans: list[RoutingPlan]) -> list[str]:
    return [plan.candidates[0] if plan.candidates else "base" for plan in plans]


class TestSingle:
    @pytest.mark.parametrize(
        ("rows", "best"),
        [
            ([(0.6, 0.3, 0.0, 0.0, 0.1), (0.0, 0.7, 0.1, 0.1, 0.1)], "b"),
            ([(0.6, 0.2, 0.0, 0.0, 0.2), (0.1, 0.1, 0.0, 0.0, 0.8)], "base"),
            ([(0.1, 0.2, 0.0, 0.6, 0.1)], "b"),
        ],
        ids=["mean over the prompt", "the base", "candidates only"],
    )
    def test_the_largest_mean_posterior_speaks_alone(self, rows: list[tuple[float, ...]], best: str) -> None:
        [plan] = of_single(MIXTURE, scores(*rows), OPTIONS)

        assert names([plan]) == [best]
        assert plan.release == "release-1"
        assert plan == BASE_PLAN or (plan.mode, plan.weights, plan.experts[0].version) == (
            PlanMode.FIXED,
            {best: 1.0},
            2,
        )

    def test_without_a_router_the_base_speaks(self) -> None:
        assert of_single(BASE_PLAN, None, OPTIONS) == [BASE_PLAN]


class TestOthers:
    def test_an_ensemble_is_the_best_few_in_order(self) -> None:
        assert names(of_ensemble(MIXTURE, scores((0.1, 0.4, 0.05, 0.15, 0.3)), OPTIONS)) == ["b", "base"]

    def test_an_ensemble_is_no_larger_than_there_are_candidates(self) -> None:
        many = AnswerOptions(integration=Integration.ENSEMBLE, ensemble_size=9)

        assert names(of_ensemble(MIXTURE, scores((0.1, 0.4, 0.05, 0.15, 0.3)), many)) == ["b", "base", "a", "c"]

    def test_a_cascade_begins_with_the_base(self) -> None:
        assert of_cascade(MIXTURE, None, OPTIONS) == [BASE_PLAN, MIXTURE]
        assert of_cascade(BASE_PLAN, None, OPTIONS) == [BASE_PLAN]

    def test_a_mixture_is_what_was_planned(self) -> None:
        assert of_mixture(MIXTURE, None, OPTIONS) == [MIXTURE]
