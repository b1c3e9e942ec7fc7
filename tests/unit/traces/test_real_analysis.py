"""Recordings that others published (traces/ of AMOE_TEST_SHARED), analysed; what is degenerate gets no figure."""

from pathlib import Path

import pytest

from services.traces.analysis import analyse
from services.traces.statistics.results import AnalysisOptions, CachePolicy, Part
from tests.unit.traces.importers.recordings import imported

OPTIONS = AnalysisOptions(
    parts=(Part.ALL,), num_permutations=99, num_resamples=99, num_matrix_resamples=50, max_shuffles=10, cache_tokens=200
)


@pytest.fixture
def recordings(shared_material: Path) -> Path:
    folder = shared_material / "traces"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}")
    return folder


def test_gpt_oss_is_routed_by_tokens_and_by_neighbours(tmp_path: Path, recordings: Path) -> None:
    trace = imported(tmp_path, {path.name: path.read_bytes() for path in recordings.glob("mmlu_*.json")})
    overview = analyse(trace, options=OPTIONS).overview
    part = overview.parts[Part.ALL]
    estimates = {name: [each.estimate for each in found] for name, found in part.over_layers.items()}

    assert overview.layers == tuple(range(24))
    assert part.num_sequences == 2
    # What a token is says more of its experts than which tokens its prompt has; neighbours share experts.
    assert all((one.q_value or 1) < 0.05 for one in estimates["vocabulary.specialisation"])
    assert sum((one.q_value or 1) < 0.05 for one in estimates["overlap.share"]) > 12
    # Two prompts of two domains differ, and nothing can be said of domains.
    assert all(one.value and one.value > 0.5 for one in estimates["independence.cramers_v"])
    assert all(one.p_value is None and one.low is None for one in estimates["independence.cramers_v"])
    assert part.cache is not None
    assert part.cache.num_objects == 24 * 32
    rates = {curve.policy: curve.hit_rate.value for curve in part.cache.curves}
    assert (rates[CachePolicy.BELADY][1] or 0) > (rates[CachePolicy.LRU][1] or 0)


def test_the_degenerate_recording_has_its_reason_and_no_figure(tmp_path: Path, recordings: Path) -> None:
    name = "olmoe_gsm8k_layer0_KaxitPandya.jsonl"
    overview = analyse(imported(tmp_path, {name: (recordings / name).read_bytes()}), options=OPTIONS).overview

    assert overview.layers == ()
    assert overview.parts == {}
    assert "2048 of them in a row" in overview.skipped[0].reason
