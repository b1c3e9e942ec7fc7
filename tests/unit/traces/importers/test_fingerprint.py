"""Fingerprint JSON: every generated token's experts in every layer, and as much of a cut file as is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shared.errors import InvalidTrace
from services.traces.choices import Phase
from services.traces.description import TraceSource
from tests.unit.traces.importers.recordings import codes, finding, imported, read_or_refused


def choice(*experts: int) -> dict[str, Any]:
    return {"selected_experts": list(experts), "selected_probs": [1 / 2**rank for rank in range(1, len(experts) + 1)]}


ANSWER: dict[str, Any] = {
    "row_index": 12,
    "dataset": "mmlu_test",
    "category": "abstract_algebra",
    "finished_successfully": True,
    "has_repetition": False,
    "full_text": ["<s>", "a", "b", "a", "</s>"],
    "router_data": [
        {"token_2": {"layer_0": choice(3, 1), "layer_1": choice(0, 7)}},
        {"token_3": {"layer_0": choice(1, 2), "layer_1": choice(6, 7)}},
    ],
}
TEXT = json.dumps(ANSWER, indent=1).encode()


class TestRead:
    def test_choices_are_read(self, tmp_path: Path) -> None:
        trace = imported(tmp_path, {"algebra.json": TEXT})
        layer = trace.layer(1)

        assert trace.description.source is TraceSource.FINGERPRINT
        assert trace.description.domains == ("abstract_algebra",)
        assert trace.sequences[0].prompt == "mmlu_test/12"
        assert layer.experts.tolist() == [[0, 7], [6, 7]]
        assert layer.weights is not None
        assert layer.weights.tolist() == [[0.5, 0.25]] * 2
        assert layer.phases.tolist() == [Phase.GENERATED] * 2
        assert layer.token_ids is not None
        assert layer.token_ids.tolist() == [0, 1]
        assert finding(trace, "local_token_ids").count == 2
        assert [each.num_experts for each in trace.description.layers] == [8, 8]

    def test_texts_have_the_same_number_in_all_answers(self, tmp_path: Path) -> None:
        trace = imported(tmp_path, {"answers.json": json.dumps([ANSWER, ANSWER | {"category": "law"}]).encode()})

        assert trace.description.domains == ("abstract_algebra", "law")
        assert trace.layer(0).token_ids is not None
        assert trace.layer(0).token_ids.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]

    def test_texts_that_repeat_themselves_are_told(self, tmp_path: Path) -> None:
        assert "degenerate_text" in codes(imported(tmp_path, {"a.json": TEXT.replace(b'n": false', b'n": true')}))

    def test_a_cut_file_is_read_as_far_as_it_is_whole(self, tmp_path: Path) -> None:
        cut = TEXT[: TEXT.index(b"token_3") + 30]
        trace = imported(tmp_path, {"a.json": cut})

        assert trace.layer(0).experts.tolist() == [[3, 1]]
        assert finding(trace, "truncated").message.endswith("its first 1 tokens were read.")

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"router_data": {}}, "no list of router_data"),
            ({"router_data": [3]}, "router_data 0 is no JSON object"),
            ({"router_data": [{"token": {}}]}, "'token' is no token's or layer's name"),
            ({"router_data": [{"token_1": {"layer_0": {}}}]}, "token_1, layer_0: selected_experts is not a list"),
        ],
    )
    def test_what_cannot_be_is_refused_with_its_place(self, tmp_path: Path, wrong: dict[str, Any], reason: str) -> None:
        with pytest.raises(InvalidTrace, match=reason):
            imported(tmp_path, {"a.json": json.dumps(ANSWER | wrong).encode()})

    @settings(max_examples=60, deadline=None)
    @given(length=st.integers(0, len(TEXT)))
    def test_what_is_cut_off_is_read_or_refused(self, tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
        read_or_refused(tmp_path_factory.mktemp("cut"), {"a.json": TEXT[:length]})
