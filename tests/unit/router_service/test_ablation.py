"""Plans that lack one expert."""

import pytest

from services.router_service.ablation import without
from services.router_service.planning import plan_fixed
from services.shared.schemas.sequences import ExpertRef, RoutingPlan
from services.shared.vocabulary import PlanMode

EXPERTS = tuple(ExpertRef(name=name, version=1, digest=name * 64) for name in "abc")
ROUTED = RoutingPlan(
    mode=PlanMode.ROUTED, release="release-1", router="d" * 64, experts=EXPERTS, candidates=("c", "a", "b")
)
FIXED = plan_fixed({"a": 0.6, "b": 0.3}, {ref.name: ref for ref in EXPERTS}, release="release-1")


class TestWithout:
    def test_a_router_chooses_among_the_other_candidates_over_the_same_columns(self) -> None:
        assert without(ROUTED, "a") == ROUTED.model_copy(update={"candidates": ("c", "b")})

    def test_fixed_weights_of_the_others_stay_as_they_are(self) -> None:
        left = without(FIXED, "a")

        assert (left.mode, left.candidates, left.weights) == (PlanMode.FIXED, ("b",), {"b": 0.3})
        assert left.experts == (EXPERTS[1],)

    @pytest.mark.parametrize("plan", [ROUTED, FIXED], ids=["routed", "fixed"])
    def test_with_nobody_left_the_base_speaks_alone(self, plan: RoutingPlan) -> None:
        for expert in plan.candidates:
            plan = without(plan, expert)

        assert plan == RoutingPlan(mode=PlanMode.BASE, release="release-1")
