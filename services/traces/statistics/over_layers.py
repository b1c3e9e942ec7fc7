"""Single numbers of layers' figures, side by side: what is tested in many layers is found in some by chance."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from services.traces.statistics.estimate import Estimate, Number, false_discovery_rates, number
from services.traces.statistics.results import Figure, LayerAnalysis, LayerEstimate, LayerFigures, Part


def over_layers(layers: Sequence[LayerAnalysis], part: Part) -> dict[str, tuple[LayerEstimate, ...]]:
    """Every single number, `figure.field`, for the layers that have it."""
    found: dict[str, list[LayerEstimate]] = {}
    for layer in layers:
        if part in layer.parts:
            for figure, field, estimate in _estimates(layer.parts[part]):
                found.setdefault(f"{figure}.{field}", []).append(LayerEstimate(layer=layer.layer, estimate=estimate))
    return {name: tuple(estimates) for name, estimates in found.items()}


def with_q_values(layers: Sequence[LayerAnalysis]) -> list[LayerAnalysis]:
    """The same, with q values of single numbers over layers, part by part."""
    q_values: dict[tuple[Part, str, int], Number] = {}
    for part in Part:
        for name, tested in over_layers(layers, part).items():
            q_L = false_discovery_rates([
                np.nan if each.estimate.p_value is None else each.estimate.p_value for each in tested
            ])  # fmt: skip
            q_values |= {(part, name, each.layer): number(q) for each, q in zip(tested, q_L, strict=True)}
    return [
        layer.model_copy(
            update={
                "parts": {
                    part: _with_q(figures, lambda name: q_values[part, name, layer.layer])  # noqa: B023
                    for part, figures in layer.parts.items()
                }
            }
        )
        for layer in layers
    ]


def _estimates(figures: LayerFigures) -> Iterator[tuple[str, str, Estimate]]:
    for name, figure in figures:
        if isinstance(figure, Figure):
            for field, value in figure:
                if isinstance(value, Estimate):
                    yield name, field, value


def _with_q(figures: LayerFigures, q_value: Callable[[str], Number]) -> LayerFigures:
    updated: dict[str, Figure] = {}
    for name, field, estimate in _estimates(figures):
        figure = updated.get(name, getattr(figures, name))
        mended = estimate.model_copy(update={"q_value": q_value(f"{name}.{field}")})
        updated[name] = figure.model_copy(update={field: mended})
    return figures.model_copy(update=updated)
