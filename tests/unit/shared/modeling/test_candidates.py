"""Which experts may speak, decided from scores alone."""

import numpy as np

from services.shared.modeling.candidates import choose_candidates


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
