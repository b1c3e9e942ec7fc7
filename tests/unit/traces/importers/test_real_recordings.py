"""Recordings that others published (traces/ of AMOE_TEST_SHARED): imported, and what is wrong with them told."""

from pathlib import Path

import numpy as np
import pytest

from services.traces.description import TraceSource
from tests.unit.traces.importers.recordings import codes, finding, imported


@pytest.fixture
def recordings(shared_material: Path) -> Path:
    folder = shared_material / "traces"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}")
    return folder


class TestPublishedRecordings:
    def test_gpt_oss_fingerprints_are_sound(self, tmp_path: Path, recordings: Path) -> None:
        files = {path.name: path.read_bytes() for path in recordings.glob("mmlu_*.json")}
        trace = imported(tmp_path, files)
        description = trace.description

        assert description.source is TraceSource.FINGERPRINT
        assert set(description.domains) == {"abstract_algebra", "college_computer_science"}
        assert (description.num_sequences, description.num_tokens) == (2, 360 + 206)
        assert {(layer.num_experts, layer.top_k) for layer in description.layers} == {(32, 4)}
        assert len(description.layers) == 24
        assert not any(description.is_degenerate(layer) for layer in trace.layers)
        assert codes(trace) == {"num_experts_inferred", "local_token_ids"}
        weights = trace.layer(5).weights
        assert weights is not None
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=0.01)

    def test_the_degenerate_log_is_flagged(self, tmp_path: Path, recordings: Path) -> None:
        name = "olmoe_gsm8k_layer0_KaxitPandya.jsonl"
        content = (recordings / name).read_bytes()
        trace = imported(tmp_path, {name: content})

        assert trace.description.is_degenerate(0)
        assert finding(trace, "constant_experts").count == 2048
        assert {"one_request_id", "uniform_weights"} <= codes(trace)
        assert (trace.layer(0).num_experts, trace.description.num_tokens) == (64, 6519)
        rest = imported(tmp_path, {name: content}, drop_constant_runs=True)
        assert not rest.description.is_degenerate(0)
        assert rest.description.num_tokens == 6519 - 2048
        assert {"one_request_id", "constant_runs"} <= codes(rest)
