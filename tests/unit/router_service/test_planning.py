"""Who may speak, decided from scores alone."""

import numpy as np
import pytest

from services.router_service.planning import CONFIDENCE_TOKENS, confidence_of, plan_fixed
from services.shared.errors import InvalidRequest, NotFound
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import PlanMode

REGISTERED = {name: ExpertRef(name=name, version=2, digest=name[0] * 64) for name in ("code", "creative")}


class TestConfidence:
    def test_is_the_best_experts_mean_over_the_prompts_end(self) -> None:
        beginning_TC = np.tile([0.0, 0.0, 1.0], (50, 1))
        end_TC = np.tile([[0.8, 0.1, 0.1], [0.0, 0.6, 0.4]], (CONFIDENCE_TOKENS // 2, 1))

        assert confidence_of(np.concatenate([beginning_TC, end_TC])) == pytest.approx(0.7)

    def test_does_not_count_the_base(self) -> None:
        assert confidence_of(np.array([[0.05, 0.05, 0.9]])) == pytest.approx(0.05)

    def test_is_zero_without_experts(self) -> None:
        assert confidence_of(np.array([[1.0]])) == 0.0


class TestFixedPlans:
    def test_hold_the_newest_versions_and_the_weights_as_given(self) -> None:
        plan = plan_fixed({"creative": 0.7, "code": 0.5}, REGISTERED, release="release-1")

        assert plan.mode == PlanMode.FIXED
        assert plan.experts == (REGISTERED["creative"], REGISTERED["code"])
        assert plan.weights == {"creative": 0.7, "code": 0.5}

    def test_the_base_alone_is_a_plan_of_its_own(self) -> None:
        assert plan_fixed({"base": 0.3}, REGISTERED, release=None).mode == PlanMode.BASE

    def test_the_base_takes_no_weight_beside_experts(self) -> None:
        with pytest.raises(InvalidRequest, match="experts' weights only"):
            plan_fixed({"base": 0.3, "code": 0.7}, REGISTERED, release=None)

    def test_unknown_names_are_answered_with_close_ones(self) -> None:
        with pytest.raises(NotFound, match="'creative'"):
            plan_fixed({"creatve": 1.0}, REGISTERED, release=None)
