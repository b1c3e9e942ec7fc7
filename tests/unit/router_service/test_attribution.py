"""Shares of an answer."""

import pytest

from services.router_service.attribution import attribute, token_shares


def as_dict(gates: list[dict[str, float]]) -> dict[str, tuple[float, int]]:
    return {part.expert: (part.share, part.num_tokens) for part in attribute(gates)}


class TestAttribution:
    def test_each_token_counts_the_same(self) -> None:
        shares = as_dict([{"math": 1.0}, {"math": 0.5, "base": 0.5}, {"code": 0.6, "base": 0.4}, {"base": 1.0}])

        assert shares == {
            "math": (pytest.approx(0.375), 2),
            "base": (pytest.approx(0.475), 1),
            "code": (pytest.approx(0.15), 1),
        }

    def test_shares_sum_to_one_and_tokens_to_all_of_them(self) -> None:
        parts = attribute([{"a": 0.2, "b": 0.3, "c": 0.1, "base": 0.4}] * 7)

        assert sum(part.share for part in parts) == pytest.approx(1.0)
        assert sum(part.num_tokens for part in parts) == 7

    def test_the_largest_comes_first(self) -> None:
        assert [part.expert for part in attribute([{"a": 0.2, "b": 0.5, "base": 0.3}])] == ["b", "base", "a"]

    def test_base_is_named_even_without_a_share(self) -> None:
        assert as_dict([{"math": 1.0}]) == {"math": (1.0, 1), "base": (0.0, 0)}

    def test_without_tokens_there_is_nothing_to_attribute(self) -> None:
        assert attribute([]) == []

    @pytest.mark.parametrize(
        ("gates", "shares"),
        [
            ({"a": 0.5, "b": 0.25}, {"a": 0.5, "b": 0.25, "base": 0.25}),
            ({"a": 1.5, "b": 0.5}, {"a": 0.75, "b": 0.25, "base": 0.0}),
            ({"a": 0.3333333, "b": 0.6666666}, {"a": 1 / 3, "b": 2 / 3, "base": 0.0}),
            ({"a": -0.5, "base": 0.5}, {"a": 0.5, "base": 0.5}),
            ({}, {"base": 1.0}),
            ({"base": 0.0}, {"base": 1.0}),
        ],
        ids=["rest is the base's", "more than one", "rounded", "negative", "nothing", "zero"],
    )
    def test_a_tokens_weights_become_shares(self, gates: dict[str, float], shares: dict[str, float]) -> None:
        assert token_shares(gates) == pytest.approx(shares, abs=1e-6)
