"""moe_routes.jsonl: requests and layers in any order, and the traps of such logs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shared.config import TraceSettings
from services.shared.errors import InvalidTrace
from services.traces.description import Severity
from tests.unit.traces.importers.recordings import codes, finding, imported, read_or_refused, route, routes

META = {"type": "meta", "model_id": "allenai/OLMoE", "top_k": 2, "num_experts": 64, "layers_logged": [0, 1]}
INTERLEAVED = [
    META,
    route("r1", 0, [5, 6], layer=1),
    route("r0", 0, [1, 2]),
    route("r1", 0, [3, 4]),
    route("r0", 0, [7, 8], layer=1),
    route("r0", 1, [9, 10], layer=1),
    route("r0", 1, [11, 12]),
]


class TestRead:
    def test_requests_and_layers_are_sorted_out(self, tmp_path: Path) -> None:
        trace = imported(tmp_path, {"moe_routes.jsonl": routes(INTERLEAVED)})

        assert trace.description.model == "allenai/OLMoE"
        assert [sequence.prompt for sequence in trace.sequences] == ["moe_routes.jsonl/r1#0", "moe_routes.jsonl/r0#0"]
        assert trace.layer(0).experts.tolist() == [[3, 4], [1, 2], [11, 12]]
        assert trace.layer(0).starts.tolist() == [0, 1, 3]
        assert trace.layer(1).experts.tolist() == [[5, 6], [7, 8], [9, 10]]
        assert trace.layer(0).num_experts == 64
        assert trace.layer(0).weights is not None
        assert trace.layer(0).weights.tolist() == [[0.5, 0.25]] * 3
        assert codes(trace) == {"phase_unknown"}

    def test_choices_come_by_falling_weight(self, tmp_path: Path) -> None:
        lines = [route("r", 0, [4, 5], topk_weights=[0.1, 0.9]), route("r", 1, [6], topk_weights=[1.0])]
        trace = imported(tmp_path, {"a.jsonl": routes(lines)}, num_experts=8)

        assert trace.layer(0).experts.tolist() == [[5, 4], [6, -1]]

    def test_phases_ids_and_domains_are_read_where_they_are_told(self, tmp_path: Path) -> None:
        lines = [
            route("r", 0, [1, 2], token_id=7, phase="prefill", domain="math"),
            route("r", 1, [1, 2], token_id=8, phase="decode", domain="math"),
        ]
        trace = imported(tmp_path, {"a.jsonl": routes(lines)}, domain="else")
        layer = trace.layer(0)

        assert trace.description.domains == ("math",)
        assert layer.phases.tolist() == [0, 1]
        assert layer.token_ids is not None
        assert layer.token_ids.tolist() == [7, 8]

    def test_requests_that_begin_again_are_split(self, tmp_path: Path) -> None:
        lines = [
            route("r0", position, [position, 9], layer=layer)
            for _ in range(3)
            for layer in (0, 1)
            for position in (0, 1)
        ]
        trace = imported(tmp_path, {"a.jsonl": routes(lines)})

        assert finding(trace, "split_requests").count == 3
        assert trace.layer(0).starts.tolist() == trace.layer(1).starts.tolist() == [0, 2, 4, 6]

    def test_one_id_for_everything_is_told(self, tmp_path: Path) -> None:
        lines = [route("r0", position, [position % 7, 9]) for position in range(1100)]
        trace = imported(tmp_path, {"a.jsonl": routes(lines)})

        assert finding(trace, "one_request_id").severity is Severity.WARNING

    def test_a_constant_set_makes_a_layer_useless(self, tmp_path: Path) -> None:
        lines = [META, *(route("r0", position, [0, 1], topk_weights=[0.5, 0.5]) for position in range(100))]
        rng = np.random.default_rng(0)
        varied = [route("r0", 100 + each, rng.permutation(64)[:2].tolist()) for each in range(100)]
        content = routes(lines + varied)
        trace = imported(tmp_path, {"a.jsonl": content})
        found = finding(trace, "constant_experts")

        assert trace.description.is_degenerate(0)
        assert (found.severity, found.count, found.layers) == (Severity.DEGENERATE, 100, (0,))
        assert finding(trace, "uniform_weights").count == 100
        cleaned = imported(tmp_path, {"a.jsonl": content}, drop_constant_runs=True)
        assert not cleaned.description.is_degenerate(0)
        assert finding(cleaned, "constant_runs").count == 100
        assert cleaned.layer(0).num_tokens == 100

    def test_a_set_may_come_often_where_there_are_few(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        lines = [route("r0", position, rng.permutation(3)[:2].tolist()) for position in range(200)]
        trace = imported(tmp_path, {"a.jsonl": routes(lines)})

        assert not trace.description.is_degenerate(0)

    def test_the_last_line_may_be_cut_off(self, tmp_path: Path) -> None:
        trace = imported(tmp_path, {"a.jsonl": routes(INTERLEAVED)[:-30]})

        assert finding(trace, "truncated").message.startswith("a.jsonl, line 7")
        assert trace.description.num_tokens == 3

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("not json", "line 2 is not JSON"),
            ("[1]", "line 2 is no JSON object"),
            (json.dumps(route("r", 0, [1]) | {"topk_ids": "1"}), "line 2: topk_ids is not a list"),
            (json.dumps(route("r", 0, [1]) | {"topk_weights": [1, 2]}), "2 topk_weights for 1 experts"),
            (json.dumps(route("r", -1, [1])), "token_idx is not a whole number"),
            (json.dumps(route("r", 0, [1], layer=10**9)), "layer is not a whole number"),
            (json.dumps(route("r", 0, [1], phase="x")), "phase is none of"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path: Path, line: str, reason: str) -> None:
        content = routes([META]) + line.encode() + b"\n" + routes([route("r", 5, [1])])

        with pytest.raises(InvalidTrace, match=reason):
            imported(tmp_path, {"a.jsonl": content})

    def test_absurd_numbers_are_left_out(self, tmp_path: Path) -> None:
        lines: list[dict[str, Any]] = [
            META,
            route("r", 0, [1, 2]),
            route("r", 1, [1, 64]),
            route("r", 2, [-1, 2]),
            route("r", 3, [10**30, 2]),
            route("r", 4, [1, 2], topk_weights=[10**400, 1]),
            route("r", 5, []),
            route("r", 6, [1, 2, 3]),
        ]
        trace = imported(tmp_path, {"a.jsonl": routes(lines)})

        assert trace.description.num_tokens == 1
        assert finding(trace, "absurd_ids").count == 4
        assert finding(trace, "absurd_weights").count == 1
        assert finding(trace, "warm_up").count == 1

    def test_lines_choices_and_sequences_are_bounded(self, tmp_path: Path) -> None:
        content = routes([route(str(number), 0, [1, 2]) for number in range(20)])

        for limits, name in (
            (TraceSettings(max_line_bytes=256), None),
            (TraceSettings(max_choices=10), "more than 10 chosen experts"),
            (TraceSettings(max_sequences=10), r"traces\.max_sequences"),
        ):
            if name is None:
                with pytest.raises(InvalidTrace, match=r"traces\.max_line_bytes"):
                    imported(tmp_path, {"a.jsonl": content + b" " * 300 + b"\n"}, limits=limits)
            else:
                with pytest.raises(InvalidTrace, match=name):
                    imported(tmp_path, {"a.jsonl": content}, limits=limits)

    @settings(max_examples=60, deadline=None)
    @given(length=st.integers(0, len(routes(INTERLEAVED))))
    def test_what_is_cut_off_is_read_or_refused(self, tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
        read_or_refused(tmp_path_factory.mktemp("cut"), {"a.jsonl": routes(INTERLEAVED)[:length]})
