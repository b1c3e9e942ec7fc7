"""A trace is analysed layer by layer; what cannot be learned is not made up."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.trace_statistics.planted_choices import planted
from services.traces.analysis import TraceAnalysis, analyse, read_layer, read_overview, write_analysis
from services.traces.choices import LayerChoices, Phase
from services.traces.comparison import compare
from services.traces.description import Finding, Severity, TraceSource
from services.traces.statistics.results import AnalysisOptions, CachePolicy, FigureName, LayerFigures, Part
from services.traces.table import Trace, TraceWriter

NUM_PROMPT = 10
QUICK = AnalysisOptions(
    num_permutations=99, num_resamples=99, num_matrix_resamples=50, max_shuffles=20, cache_tokens=200
)


def written(folder: Path, layers: list[LayerChoices], *, findings: tuple[Finding, ...] = ()) -> Trace:
    """The first tokens of each sequence are prompt; a padding token with an expert of its own is before them."""
    folder.mkdir()
    domains = ("code", "math", "prose", "law", "verse")
    with TraceWriter(folder, source=TraceSource.NATIVE) as writer:
        for sequence, domain in enumerate(layers[0].domains.tolist()):
            writer.add_sequence(domains[domain], f"{domains[domain]}-{sequence}")
            for number, layer in enumerate(layers):
                tokens = slice(*layer.starts[sequence : sequence + 2])
                assert layer.token_ids is not None
                length = tokens.stop - tokens.start
                phases = np.where(np.arange(length) < NUM_PROMPT, Phase.PROMPT, Phase.GENERATED)
                writer.add(number, sequence, positions=[0], phases=Phase.PADDING, token_ids=[0],
                           experts=[[layer.num_experts - 1] + [-1] * (layer.experts.shape[1] - 1)])  # fmt: skip
                writer.add(number, sequence, positions=np.arange(1, length + 1), phases=phases,
                           token_ids=layer.token_ids[tokens], experts=layer.experts[tokens])  # fmt: skip
        writer.finish(num_experts={n: layer.num_experts for n, layer in enumerate(layers)}, findings=findings)
    return Trace(folder)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Three layers: domains and stickiness, nothing at all, and one that is of no use."""
    domains = np.repeat(np.arange(3), 5)
    layers = [
        planted(domains=domains, num_tokens=40, seed=1, top_k=2, stickiness=0.4, preference=0.4),
        planted(domains=domains, num_tokens=40, seed=2, top_k=2),
        planted(domains=domains, num_tokens=40, seed=3),
    ]
    stuck = Finding(code="constant", severity=Severity.DEGENERATE, message="one set for all tokens", layers=(2,))
    return written(tmp_path_factory.mktemp("traces") / "trace", layers, findings=(stuck,))


@pytest.fixture(scope="module")
def analysis(trace: Trace) -> TraceAnalysis:
    return analyse(trace, options=QUICK)


class TestAnalyse:
    def test_tells_effects_from_chance(self, analysis: TraceAnalysis) -> None:
        estimates = analysis.overview.parts[Part.ALL].over_layers

        for name in ("independence.cramers_v", "stickiness.repetition", "mutual_information.bits", "overlap.share"):
            effect, nothing = (each.estimate for each in estimates[name])
            assert effect.q_value is not None
            assert nothing.p_value is not None
            assert effect.q_value < 0.05 < nothing.p_value
            assert effect.value is not None
            assert effect.null_high is not None
            assert effect.value > effect.null_high

    def test_degenerate_layers_are_named_and_nothing_else(self, analysis: TraceAnalysis) -> None:
        assert analysis.overview.layers == (0, 1)
        assert [(each.layer, each.reason) for each in analysis.overview.skipped] == [(2, "one set for all tokens")]
        assert [layer.layer for layer in analysis.layers] == [0, 1]

    def test_parts_are_apart_and_padding_is_nowhere(self, analysis: TraceAnalysis) -> None:
        parts = analysis.layers[0].parts

        assert {part: figures.num_tokens for part, figures in parts.items()} == {
            Part.ALL: 15 * 40,
            Part.PROMPT: 15 * NUM_PROMPT,
            Part.GENERATED: 15 * (40 - NUM_PROMPT),
        }

    def test_every_figure_is_there_or_says_why_not(self, analysis: TraceAnalysis) -> None:
        of_layers = [name for name in FigureName if name not in {FigureName.CACHE, FigureName.SATURATION}]

        for layer in analysis.layers:
            for figures in layer.parts.values():
                assert [name for name in of_layers if getattr(figures, name) is None] == list(figures.missing)

    def test_what_is_written_is_read_again(self, analysis: TraceAnalysis, tmp_path: Path) -> None:
        write_analysis(analysis, tmp_path)

        assert read_overview(tmp_path) == analysis.overview
        assert tuple(read_layer(tmp_path, layer) for layer in (0, 1)) == analysis.layers
        with pytest.raises(FileNotFoundError):
            read_layer(tmp_path, 2)

    def test_caches_are_simulated_over_all_layers(self, analysis: TraceAnalysis) -> None:
        cache = analysis.overview.parts[Part.GENERATED].cache

        assert cache is not None
        assert cache.num_objects == 16
        assert cache.num_tokens == 200
        assert cache.num_accesses == 200 * 2 * 2
        assert cache.left_out is not None
        assert "of 450 tokens 200 are simulated" in cache.left_out
        best = next(curve for curve in cache.curves if curve.policy is CachePolicy.BELADY).hit_rate.value
        for curve in cache.curves:
            rates = [rate or 0.0 for rate in curve.hit_rate.value]
            assert all(rate <= (most or 0.0) for rate, most in zip(rates, best, strict=True))
            assert rates[-1] == pytest.approx(1 - (cache.compulsory_misses or 0.0), abs=1e-5)

    def test_one_prompt_a_domain_is_no_test_of_domains(self, tmp_path: Path) -> None:
        layer = planted(domains=np.arange(5), num_tokens=60, seed=4, top_k=2, preference=0.3)
        figures = analyse(written(tmp_path / "trace", [layer]), options=QUICK).layers[0].parts[Part.ALL]

        assert figures.independence is not None
        assert figures.independence.cramers_v.value is not None
        assert figures.independence.cramers_v.p_value is None
        assert figures.independence.cramers_v.low is None
        assert figures.stickiness is not None
        assert figures.stickiness.repetition.low is not None

    def test_a_single_sequence_has_no_interval(self, tmp_path: Path) -> None:
        layer = planted(domains=np.zeros(1, dtype=np.int64), num_tokens=60, seed=5)
        figures = analyse(written(tmp_path / "trace", [layer]), options=QUICK).layers[0].parts[Part.ALL]

        assert figures.stickiness is not None
        assert figures.stickiness.repetition.value is not None
        assert figures.stickiness.repetition.low is None
        assert figures.stickiness.repetition.p_value is not None
        assert set(figures.missing) == {
            FigureName.INDEPENDENCE, FigureName.DIVERGENCE, FigureName.MUTUAL_INFORMATION, FigureName.SPECIALISATION,
            FigureName.COACTIVATION, FigureName.VOCABULARY,
        }  # fmt: skip

    @pytest.mark.parametrize("num_tokens", [1, 2])
    def test_hardly_any_token_is_enough_to_say_so(self, tmp_path: Path, num_tokens: int) -> None:
        layer = planted(domains=np.arange(2), num_tokens=num_tokens, seed=6, num_experts=2)
        figures = analyse(written(tmp_path / "trace", [layer]), options=QUICK).layers[0].parts[Part.ALL]

        assert isinstance(figures, LayerFigures)
        assert figures.num_tokens == 2 * num_tokens


class TestCompare:
    def test_the_same_routing_is_all_there(self, trace: Trace) -> None:
        found = compare(trace, trace, options=QUICK)

        assert [layer.layer for layer in found.layers] == [0, 1]
        assert [layer.saturation.value for layer in found.layers] == [1.0, 1.0]
        assert found.num_unmatched == 0
        assert found.left_out[0].layer == 2

    def test_tokens_count_as_far_as_they_are_the_same(self, trace: Trace, tmp_path: Path) -> None:
        domains = np.repeat(np.arange(3), 5)
        earlier = planted(domains=domains, num_tokens=40, seed=1, top_k=2, stickiness=0.4, preference=0.4)
        assert earlier.token_ids is not None
        earlier.token_ids[25] = 999
        found = compare(written(tmp_path / "earlier", [earlier]), trace, options=QUICK)

        assert [layer.layer for layer in found.layers] == [0]
        assert found.layers[0].num_tokens == 15 * 40 - 15
        assert found.layers[0].saturation.value == 1.0

    def test_unrelated_routing_is_at_its_null(self, trace: Trace, tmp_path: Path) -> None:
        others = [planted(domains=np.repeat(np.arange(3), 5), num_tokens=40, seed=seed, top_k=2) for seed in (1, 9)]
        # The ids of tokens are those of the trace, the choices are others.
        for number, other in enumerate(others):
            original = trace.layer(number).of(Phase.PROMPT, Phase.GENERATED)
            assert other.token_ids is not None
            assert original.token_ids is not None
            other.token_ids[:] = original.token_ids
        found = compare(written(tmp_path / "other", others), trace, options=QUICK)
        saturation = found.layers[1].saturation

        assert saturation.null is not None
        assert saturation.low is not None
        assert saturation.high is not None
        assert saturation.low < saturation.null < saturation.high
