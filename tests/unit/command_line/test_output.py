"""What commands print for people."""

import pytest

from services.command_line.output import cell, size
from services.command_line.release_comparison import comparison_lines


@pytest.mark.parametrize(
    ("num_bytes", "told"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**31, "2.0 GiB")]
)
def test_sizes_are_told_in_the_unit_that_suits_them(num_bytes: int, told: str) -> None:
    assert size(num_bytes) == told


def test_cells_hold_what_people_wrote_as_it_is() -> None:
    assert [cell(value) for value in (None, True, False, "[red]x[/]", 1.5)] == ["", "yes", "", "[red]x[/]", "1.5"]


def test_a_comparison_has_a_line_for_each_difference() -> None:
    comparison = {
        "a": "release-1",
        "b": "release-2",
        "digest": {"a": "a" * 64, "b": "b" * 64},
        "same_content": False,
        "base_fingerprint": None,
        "experts": {
            "added": [{"name": "law", "version": 1}],
            "removed": [],
            "changed": [
                {
                    "name": "math",
                    "a": {"version": 1},
                    "b": {"version": 2},
                    "metrics": {"eval_loss": {"a": 1.5, "b": 1.25, "difference": -0.25}},
                }
            ],
            "unchanged": ["code"],
            "reordered": False,
        },
        "router": {"digest": {"a": "1" * 64, "b": "2" * 64}, "settings": {"temper": {"a": 0.3, "b": 0.5}}},
        "graph": {"a": None, "b": "3" * 64},
        "calibration": None,
        "evaluation": {
            "domains": {"math": {"a": 1.0, "b": 1.5, "difference": 0.5}},
            "regressions": ["math"],
            "tolerance": 0.02,
        },
    }

    assert list(comparison_lines(comparison)) == [
        "+ law@1",
        "~ math: @1 → @2",
        "  eval_loss: 1.5 → 1.25",
        "graph: none → 333333333333",
        "router: 111111111111 → 222222222222",
        "  temper: 0.3 → 0.5",
        "loss in math: 1.0000 → 1.5000 (+0.5000)  (worse than is tolerated)",
    ]
