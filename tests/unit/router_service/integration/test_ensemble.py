"""Which answer of an ensemble is given."""

import pytest

from services.router_service.integration.ensemble import choose, count_votes


class TestChoice:
    def test_case_and_white_space_do_not_count_in_votes(self) -> None:
        assert count_votes([" 17\n", "17", "sixteen", "Sixteen ", "17 apples"]) == [2, 2, 2, 2, 1]

    @pytest.mark.parametrize(
        ("scores", "votes", "chosen"),
        [
            ([-2.0, -1.0, -3.0], None, 1),
            ([-2.0, -1.0, -3.0], [2, 1, 2], 0),
            ([-2.0, -1.0, -3.0], [1, 1, 1], 1),
            ([-1.0, -1.0], None, 0),
        ],
        ids=["likeliest", "majority", "no majority", "equal"],
    )
    def test_votes_go_before_likelihood(self, scores: list[float], votes: list[int] | None, chosen: int) -> None:
        assert choose(scores, votes) == chosen
