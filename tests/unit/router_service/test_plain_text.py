"""The line before a plain text."""

import pytest

from services.router_service.api.plain_text import attribution_line
from services.router_service.attribution import attribute


class TestAttributionLine:
    @pytest.mark.parametrize(
        ("gates", "line"),
        [
            ([{"math": 0.82, "base": 0.18}], "[experts: math 82 %, base 18 %]"),
            ([{"math": 1.0}], "[experts: math 100 %]"),
            ([{"math": 0.002, "base": 0.998}], "[experts: base 100 %, math <1 %]"),
            ([], "[experts: none]"),
        ],
    )
    def test_names_those_who_spoke_in_whole_percents(self, gates: list[dict[str, float]], line: str) -> None:
        assert attribution_line(attribute(gates)) == line

    def test_effects_have_a_sign(self) -> None:
        shares = attribute([{"math": 0.5, "base": 0.5}])
        measured = [part.model_copy(update={"effect": 0.25 if part.expert == "math" else None}) for part in shares]

        assert attribution_line(measured) == "[experts: base 50 %, math 50 % (+0.25 nats)]"
