"""tensor_trace.bin: read to its first empty record, a selection counted once, the warm-up left out."""

import resource
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shared.config import TraceSettings
from services.shared.errors import InvalidTrace
from services.shared.schemas.trace_import import ImportOptions
from services.traces.description import Severity, TraceSource
from services.traces.importers.ggml_operations import OPERATIONS, name_of, number_of
from services.traces.importers.importing import import_trace
from services.traces.importers.llama_cpp import record_type
from services.traces.importers.source_file import Reading, SourceFile
from tests.unit.traces.importers.recordings import (
    ADD_ID,
    MUL_MAT_ID,
    PROMPT,
    codes,
    finding,
    imported,
    model_pass,
    read_or_refused,
    record,
)

WARM_UP = [list(range(16)), list(range(16, 32))]
PASSES = [
    *model_pass(0, WARM_UP, phase=PROMPT),
    *model_pass(0, [[3, 9, 1, 2], [31, 0, 5, 6]]),
    *model_pass(1, [[9, 5, 24, 3], [1, 2, 3, 4]]),
    *model_pass(2, [[9, 5, 24, 7], [4, 3, 2, 1]]),
]
WHOLE = b"".join(PASSES)


class TestOperationTable:
    def test_numbers_are_those_of_the_traced_build(self) -> None:
        known = {
            "NONE": 0, "ADD": 2, "ADD_ID": 3, "MUL": 7, "RMS_NORM": 25, "MUL_MAT": 29, "MUL_MAT_ID": 30, "OUT_PROD": 31,
            "CONT": 35, "RESHAPE": 36, "VIEW": 37, "GET_ROWS": 40, "SET_ROWS": 42, "SOFT_MAX": 46, "ROPE": 48,
            "ARGSORT": 68, "TOP_K": 69, "FLASH_ATTN_EXT": 73, "UNARY": 85, "GLU": 94,
        }  # fmt: skip

        assert len(OPERATIONS) == 95
        assert {name: number_of(name, {}) for name in known} == known
        assert name_of(200, {}) == "UNKNOWN_200"
        assert name_of(31, {"MUL_MAT_ID": 31}) == "MUL_MAT_ID"


class TestRecordType:
    def test_offsets_are_those_of_the_header(self) -> None:
        kind = record_type(1024)

        assert kind.itemsize == 1024
        assert {name: kind.fields[name][1] for name in kind.names or ()} == {  # type: ignore[index]
            "timestamp_ns": 0, "token_id": 8, "layer_id": 12, "operation": 16, "phase": 17, "num_sources": 18,
            "dst_name": 24, "expert_ids": 792, "num_experts": 856,
        }  # fmt: skip


class TestRead:
    def test_choices_are_read_layer_by_layer(self, tmp_path: Path) -> None:
        trace = imported(tmp_path, {"domain-1-code/tensor_trace.bin": WHOLE + bytes(10 * 1024)})
        description = trace.description

        assert description.source is TraceSource.LLAMA_CPP
        assert description.domains == ("code",)
        assert trace.sequences[0].prompt == "domain-1-code"
        assert [layer.num_experts for layer in description.layers] == [32, 32]
        assert trace.layer(0).experts.tolist() == [[3, 9, 1, 2], [9, 5, 24, 3], [9, 5, 24, 7]]
        assert trace.layer(1).experts.tolist() == [[31, 0, 5, 6], [1, 2, 3, 4], [4, 3, 2, 1]]
        assert not description.has_weights
        assert not description.has_token_ids

    def test_the_traps_of_the_format_are_told(self, tmp_path: Path) -> None:
        trace = imported(tmp_path, {"code.bin": WHOLE + bytes(1024)})

        assert finding(trace, "warm_up").count == 1
        # Four operations of two layers in four passes, each selection once.
        assert finding(trace, "shared_selection").count == 4 * 2 * 4 - 2 * 4
        assert finding(trace, "first_token_of_prompt").severity is Severity.WARNING
        assert {"prompt_relabelled", "num_experts_inferred"} <= codes(trace)
        assert "truncated" not in codes(trace)

    def test_the_pass_after_the_warm_up_is_the_prompt_whatever_it_is_called(self, tmp_path: Path) -> None:
        assert imported(tmp_path, {"a.bin": WHOLE}).layer(0).phases.tolist() == [0, 1, 1]

    def test_without_warm_up_nothing_is_left_out(self, tmp_path: Path) -> None:
        records = [*model_pass(0, [[1, 2]], phase=PROMPT), *model_pass(1, [[3, 4]]), *model_pass(2, [[5, 6]])]
        trace = imported(tmp_path, {"a.bin": b"".join(records) + bytes(1024)}, num_experts=8)

        assert trace.layer(0).experts.tolist() == [[1, 2], [3, 4], [5, 6]]
        assert trace.layer(0).num_experts == 8
        assert codes(trace) == {"shared_selection", "first_token_of_prompt"}

    def test_a_warm_up_with_as_many_experts_is_told_by_being_the_same_in_all_files(self, tmp_path: Path) -> None:
        def file(first: int) -> bytes:
            passes = [(0, [[9, 5], [7, 1]]), (0, [[first, 2], [3, 4]]), (1, [[first, 3], [4, 5]])]
            return b"".join(b"".join(model_pass(token, chosen)) for token, chosen in passes)

        trace = imported(tmp_path, {"a.bin": file(10), "b.bin": file(11)})

        assert finding(trace, "warm_up").count == 2
        assert trace.layer(0).experts.tolist() == [[10, 2], [10, 3], [11, 2], [11, 3]]
        assert "maybe_warm_up" in codes(imported(tmp_path, {"a.bin": file(10)}))

    def test_a_recording_of_nothing_but_warm_up_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidTrace, match="--no-warmup"):
            imported(tmp_path, {"a.bin": b"".join(model_pass(0, WARM_UP))}, top_k=4)

    def test_a_full_ranking_without_a_known_top_k_is_flagged(self, tmp_path: Path) -> None:
        assert "top_k_cut" in codes(imported(tmp_path, {"a.bin": b"".join(model_pass(0, WARM_UP))}))

    def test_other_builds_operation_numbers_can_be_named(self, tmp_path: Path) -> None:
        content = b"".join(record(token, 0, [token, 9], operation=41) for token in range(3))

        with pytest.raises(InvalidTrace, match=r"only named by operations 41 \(GET_ROWS_BACK\)"):
            imported(tmp_path, {"a.bin": content})
        trace = imported(tmp_path, {"a.bin": content}, operations={"MUL_MAT_ID": 41})
        assert trace.layer(0).experts.tolist() == [[0, 9], [1, 9], [2, 9]]

    def test_operations_of_an_unknown_number_beside_known_ones_are_told(self, tmp_path: Path) -> None:
        content = record(0, 0, [1, 2]) + record(1, 0, [3, 4]) + record(1, 0, [3, 4], operation=50)

        assert finding(imported(tmp_path, {"a.bin": content}), "operation_numbers").count == 1

    def test_selections_that_differ_within_a_pass_are_told(self, tmp_path: Path) -> None:
        content = record(0, 0, [1, 2], operation=MUL_MAT_ID) + record(0, 0, [1, 3], operation=ADD_ID, name="bias")
        trace = imported(tmp_path, {"a.bin": content})

        assert finding(trace, "selections_differ").count == 1
        assert trace.layer(0).experts.tolist() == [[1, 2]]

    def test_absurd_experts_are_left_out(self, tmp_path: Path) -> None:
        content = b"".join(record(token, 0, experts) for token, experts in enumerate([[1, 2], [-4, 2], [1, 9], [3, 3]]))
        trace = imported(tmp_path, {"a.bin": content}, num_experts=8)

        assert trace.layer(0).experts.tolist() == [[1, 2]]
        assert finding(trace, "absurd_ids").count == 2
        assert finding(trace, "repeated_ids").count == 1

    @pytest.mark.parametrize(("record_bytes", "reason"), [(128, "did not record experts"), (256, "did not record")])
    def test_older_tracers_recorded_no_experts(self, tmp_path: Path, record_bytes: int, reason: str) -> None:
        content = (WHOLE[:24] + b"ffn_norm-0".ljust(record_bytes - 24, b"\0")) * 4

        with pytest.raises(InvalidTrace, match=reason):
            imported(tmp_path, {"a.bin": content}, record_bytes=record_bytes)

    def test_records_with_another_padding_are_read(self, tmp_path: Path) -> None:
        content = b"".join(each[:900] for each in PASSES)

        trace = imported(tmp_path, {"a.bin": content}, record_bytes=900)
        assert trace.layer(1).experts.tolist() == [[31, 0, 5, 6], [1, 2, 3, 4], [4, 3, 2, 1]]

    def test_records_of_another_length_than_told_are_refused(self, tmp_path: Path) -> None:
        content = b"".join(each[:900] for each in PASSES)

        with pytest.raises(InvalidTrace, match="record_bytes"):
            imported(tmp_path, {"a.bin": content})

    def test_a_file_of_zeros_holds_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidTrace, match="mode `experts` or `all`"):
            imported(tmp_path, {"a.bin": bytes(4096)})

    def test_a_sparse_file_of_two_gibibytes_is_read_in_a_moment(self, tmp_path: Path) -> None:
        # What is beyond the first empty record is never looked at: with it this would take many times as long.
        file = tmp_path / "tensor_trace.bin"
        file.write_bytes(WHOLE)
        with file.open("r+b") as opened:
            opened.truncate(2 * 1024**3)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        (tmp_path / "trace").mkdir()
        (tmp_path / "scratch").mkdir()
        reading = Reading(ImportOptions(), TraceSettings(), stop_if_asked=lambda: None)
        description = import_trace(
            [SourceFile(file.name, file)], tmp_path / "trace", scratch=tmp_path / "scratch", reading=reading
        )

        assert description.num_tokens == 3
        assert time.process_time() - started < 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB

    @settings(max_examples=60, deadline=None)
    @given(
        length=st.integers(0, len(WHOLE)),
        flipped=st.none() | st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)),
    )
    def test_what_is_cut_off_or_damaged_is_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, length: int, flipped: tuple[int, int] | None
    ) -> None:
        content = bytearray(WHOLE[:length])
        if flipped is not None and flipped[0] < length:
            content[flipped[0]] = flipped[1]
        trace = read_or_refused(tmp_path_factory.mktemp("cut"), {"a.bin": bytes(content)})

        if trace is not None and flipped is None and length % 1024:
            assert "truncated" in codes(trace)
