"""Which text belongs to which expert."""

import pytest

from services.shared.errors import InvalidRequest
from services.trainer_worker.evaluation.held_out import columns_of

EXPERTS = [("adder", "math"), ("poet", "verse"), ("bard", "verse"), ("coder", None)]


class TestColumnsOf:
    def test_takes_names_and_domains_and_puts_them_in_the_order_of_the_columns(self) -> None:
        assert list(columns_of(["coder", "bard", "math"], EXPERTS).items()) == [("math", 0), ("bard", 2), ("coder", 3)]

    @pytest.mark.parametrize(
        ("domains", "complaint"),
        [
            (["verse"], "name one of poet, bard"),
            (["math", "adder"], "both mean the expert 'adder'"),
            (["music"], "Its experts: adder, poet, bard, coder"),
        ],
        ids=["a domain of two experts", "two names of one expert", "nobody's"],
    )
    def test_refuses_what_is_not_one_experts(self, domains: list[str], complaint: str) -> None:
        with pytest.raises(InvalidRequest, match=complaint):
            columns_of(domains, EXPERTS)
