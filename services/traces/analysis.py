"""The analysis of a trace, in memory and in a folder: `analysis.json`, and `layers/layer-NNNNN.json` for each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from services.traces.choices import LayerChoices, Phase
from services.traces.description import Severity, TraceDescription
from services.traces.statistics.over_layers import over_layers, with_q_values
from services.traces.statistics.results import (
    AnalysisOptions,
    AnalysisOverview,
    Cache,
    LayerAnalysis,
    LayerEstimate,
    LayerFigures,
    Part,
    PartOverview,
    SkippedLayer,
)

ANALYSIS: Final = "analysis.json"
LAYERS: Final = "layers"
_PHASES: Final = {
    Part.ALL: (Phase.PROMPT, Phase.GENERATED),
    Part.PROMPT: (Phase.PROMPT,),
    Part.GENERATED: (Phase.GENERATED,),
}


class LayeredChoices(Protocol):
    """What is analysed: a `Trace`, or anything that gives its layers one by one."""

    @property
    def description(self) -> TraceDescription: ...

    @property
    def layers(self) -> Sequence[int]: ...

    def layer(self, number: int, /) -> LayerChoices: ...


@dataclass(frozen=True)
class TraceAnalysis:
    """All that was found."""

    overview: AnalysisOverview
    layers: tuple[LayerAnalysis, ...]


def analyse(trace: LayeredChoices, *, options: AnalysisOptions | None = None) -> TraceAnalysis:
    """Every figure of every layer that is not degenerate, one layer in memory at a time."""
    # scipy.stats takes a second and 100 MB, which those who only read an analysis do without.
    from services.traces.statistics.cache import CacheTokens
    from services.traces.statistics.layer_figures import layer_figures

    options = options or AnalysisOptions()
    description = trace.description
    num_domains = len(description.domains)
    caches = {part: CacheTokens(num_domains, options) for part in options.parts}
    layers, sizes = [], {part: _PartSize.nothing(num_domains) for part in options.parts}
    for traced in description.layers:
        if description.is_degenerate(traced.layer):
            continue
        choices = trace.layer(traced.layer)
        parts: dict[Part, LayerFigures] = {}
        for part in options.parts:
            tokens = choices.of(*_PHASES[part])
            if not tokens.num_tokens:
                continue
            sizes[part] = sizes[part].or_larger(tokens)
            caches[part].add(tokens)
            everything = parts.get(Part.ALL)
            parts[part] = (
                everything
                if everything is not None and everything.num_tokens == tokens.num_tokens
                else layer_figures(tokens, num_domains=num_domains, options=options)
            )
        layers.append(
            LayerAnalysis(layer=traced.layer, num_experts=traced.num_experts, top_k=traced.top_k, parts=parts)
        )
    layers = with_q_values(layers)
    simulated = {part: cache.figure() for part, cache in caches.items() if not _is_all(part, sizes)}
    return TraceAnalysis(
        AnalysisOverview(
            description=description,
            options=options,
            layers=tuple(layer.layer for layer in layers),
            skipped=_skipped(description),
            parts={
                part: size.overview(over_layers(layers, part), simulated.get(part, simulated.get(Part.ALL)))
                for part, size in sizes.items()
                if size.num_tokens
            },
        ),
        tuple(layers),
    )


def write_analysis(analysis: TraceAnalysis, folder: Path) -> None:
    """Into a folder that may hold other things."""
    (folder / LAYERS).mkdir(parents=True)
    (folder / ANALYSIS).write_text(analysis.overview.model_dump_json() + "\n", encoding="utf-8")
    for layer in analysis.layers:
        _layer_file(folder, layer.layer).write_text(layer.model_dump_json() + "\n", encoding="utf-8")


def read_overview(folder: Path) -> AnalysisOverview:
    """What `write_analysis` wrote, without the layers."""
    return AnalysisOverview.model_validate_json((folder / ANALYSIS).read_text(encoding="utf-8"))


def read_layer(folder: Path, layer: int) -> LayerAnalysis:
    """One layer of what `write_analysis` wrote. Raises FileNotFoundError for a layer that has no figures."""
    return LayerAnalysis.model_validate_json(_layer_file(folder, layer).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _PartSize:
    """Sequences and tokens of the layer that has most."""

    sequences_by_domain: tuple[int, ...]
    tokens_by_domain: tuple[int, ...]

    @classmethod
    def nothing(cls, num_domains: int) -> "_PartSize":
        return cls((0,) * num_domains, (0,) * num_domains)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_by_domain)

    def or_larger(self, choices: LayerChoices) -> "_PartSize":
        if choices.num_tokens <= self.num_tokens:
            return self
        lengths, num_domains = np.diff(choices.starts), len(self.tokens_by_domain)
        return _PartSize(
            tuple(np.bincount(choices.domains[lengths > 0], minlength=num_domains).tolist()),
            tuple(np.bincount(choices.domains, lengths, num_domains).astype(int).tolist()),
        )

    def overview(self, estimates: dict[str, tuple[LayerEstimate, ...]], cache: Cache | None) -> PartOverview:
        return PartOverview(
            num_sequences=sum(self.sequences_by_domain),
            num_tokens=self.num_tokens,
            sequences_by_domain=self.sequences_by_domain,
            tokens_by_domain=self.tokens_by_domain,
            over_layers=estimates,
            cache=cache,
        )


def _is_all(part: Part, sizes: Mapping[Part, _PartSize]) -> bool:
    """Whether a part has every token, so that nothing is different of it."""
    return part is not Part.ALL and Part.ALL in sizes and sizes[part] == sizes[Part.ALL]


def _skipped(description: TraceDescription) -> tuple[SkippedLayer, ...]:
    return tuple(
        SkippedLayer(
            layer=traced.layer,
            reason="; ".join(
                finding.message
                for finding in description.findings
                if finding.severity is Severity.DEGENERATE and (not finding.layers or traced.layer in finding.layers)
            ),
        )
        for traced in description.layers
        if description.is_degenerate(traced.layer)
    )


def _layer_file(folder: Path, layer: int) -> Path:
    return folder / LAYERS / f"layer-{layer:05}.json"
