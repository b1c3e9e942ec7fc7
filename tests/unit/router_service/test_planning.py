"""Who may speak, decided from scores alone."""

import numpy as np
import pytest

from services.router_service.planning import CONFIDENCE_TOKENS, choose_candidates, confidence_of, plan_fixed
from services.shared.errors import InvalidRequest, NotFound
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import PlanMode

REGISTERED = {name: ExpertRef(name=name, version=2, digest=name[0] * 64) for name in ("code", "creative")}


class TestCandidates:
    def test_are_ranked_by_their_peak_anywhere_in_the_prompt(self) -> None:
        scores_TC = np.array([[0.9, 0.05, 0.0, 0.05], [0.0, 0.3, 0.6, 0.1]])

        assert choose_candidates(("a", "b", "c", "base"), scores_TC, 2) == ("a", "c")

    def test_are_all_when_there_is_room(self) -> None:
        scores_TC = np.array([[0.2, 0.3, 0.5]])

        assert choose_candidates(("a", "b", "base"), scores_TC, 8) == ("b", "a")

    def test_leave_out_who_is_never_heard_where_not_all_fit(self) -> None:
        names = tuple(f"e{index}" for index in range(20))
        scores_TC = np.full((2, 21), 1e-4)
        scores_TC[0, 7], scores_TC[1, 3] = 0.9, 0.8
        many_TC = scores_TC.copy()
        many_TC[1, 10:16] = 0.02

        assert choose_candidates((*names, "base"), scores_TC, 16) == ("e7", "e3", "e0", "e1")
        assert set(choose_candidates((*names, "base"), many_TC, 16)) == {"e7", "e3", *names[10:16]}
        assert len(choose_candidates((*names, "base"), scores_TC, 2)) == 2

    def test_ties_go_to_the_earlier_column(self) -> None:
        assert choose_candidates(("a", "b", "base"), np.array([[0.4, 0.4, 0.2]]), 1) == ("a",)


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
