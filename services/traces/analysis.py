"""The analysis of a trace, in memory and in a folder: `analysis.json`, and `layers/layer-NNNNN.json` for each layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.traces.statistics.results import AnalysisOverview, LayerAnalysis

ANALYSIS: Final = "analysis.json"
LAYERS: Final = "layers"


@dataclass(frozen=True)
class TraceAnalysis:
    """All that was found."""

    overview: AnalysisOverview
    layers: tuple[LayerAnalysis, ...]


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


def _layer_file(folder: Path, layer: int) -> Path:
    return folder / LAYERS / f"layer-{layer:05}.json"
