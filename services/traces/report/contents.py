"""What a report says, in words, tables and pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes

from services.shared.drawing import save
from services.traces.analysis import TraceAnalysis
from services.traces.description import TraceDescription
from services.traces.report import pictures
from services.traces.report.document import Block, Heading, Paragraph, Picture, Table
from services.traces.statistics.estimate import Estimate, Number
from services.traces.statistics.results import (
    AnalysisOverview,
    Figure,
    LayerAnalysis,
    LayerEstimate,
    LayerFigures,
    Part,
    PartOverview,
    Repetition,
)

_COLUMNS: Final = {
    "Cramér's V": ("independence.cramers_v", "{:.3f}"),
    "I(domain; expert), bits": ("mutual_information.bits", "{:.4f}"),
    "same first choice": ("stickiness.repetition", "{:.1%}"),
    "by popularity": ("stickiness.popularity", "{:.1%}"),
    "overlap with the token before": ("overlap.share", "{:.1%}"),
    "by token id": ("vocabulary.specialisation", "{:.1%}"),
    "effective experts": ("entropy.effective_experts", "{:.1f}"),
    "MaxVio": ("load.max_violation", "{:.2f}"),
}
_READING: Final = (
    "Prompts are the independent unit: intervals are drawn over prompts, and tests deal out domains among whole "
    "prompts or shuffle tokens within them. An asterisk marks what is not chance at a false discovery rate of 5 % over "
    "layers (Benjamini and Hochberg). Chi-square tests over tokens are not shown: tokens of one prompt depend on each "
    "other, and such tests find a difference between any prompts whatever."
)


def blocks(analysis: TraceAnalysis, folder: Path) -> Iterator[Block]:
    """Of prompt and generated tokens together; pictures are drawn into the folder."""
    yield from _origin(analysis.overview)
    part = next((part for part in Part if part in analysis.overview.parts), None)
    if part is None:
        yield Paragraph("No layer is left that figures can be made of.")
        return
    overview = analysis.overview.parts[part]
    yield Heading("Layer by layer")
    yield Paragraph(_READING)
    yield _layer_table(overview, analysis.overview.layers)
    drawn = _Drawn(folder, part)
    if len(analysis.layers) > 1:
        yield from _over_layers(analysis, overview, drawn)
    for layer in _looked_at(analysis.layers, overview, part):
        yield from _one_layer(layer, layer.parts[part], analysis.overview.description, drawn)
    if overview.cache is not None:
        yield Heading("Caches of experts")
        yield drawn.picture(
            "cache", pictures.draw_cache(overview.cache), overview.cache, "Simulated hit rates over all layers",
            f"{overview.cache.num_accesses} accesses to {overview.cache.num_used} of {overview.cache.num_objects} "
            "(layer, expert), caches empty at the start; shaded: 95 % intervals over prompts; dotted: all but the "
            f"first accesses.{_sentence(overview.cache.left_out)}",
        )  # fmt: skip


class _Drawn:
    """Pictures, by the name of a file."""

    def __init__(self, folder: Path, part: Part) -> None:
        self._folder = folder
        self._tokens = {Part.ALL: "tokens", Part.PROMPT: "prompt tokens", Part.GENERATED: "generated tokens"}[part]

    def picture(self, name: str, axes: Axes, figure: Figure, title: str, caption: str) -> Picture:
        """Drawn into the folder."""
        save(axes, self._folder / f"{name}.png")
        count = f"{figure.num_sequences} prompts, {figure.num_tokens} {self._tokens}"
        return Picture(f"{name}.png", title, f"{title}. {caption} n: {count}.")


def _origin(overview: AnalysisOverview) -> Iterator[Block]:
    description = overview.description
    of = f" of {description.model}" if description.model else ""
    yield Paragraph(
        f"Recorded from {description.source.value}{of}: {description.num_sequences} prompts, {description.num_tokens} "
        f"tokens, {len(description.layers)} layer{'s' if len(description.layers) > 1 else ''}."
    )
    parts = overview.parts
    yield Table(
        ("domain", *(f"{one} {part.value}" for part in parts for one in ("prompts,", "tokens,"))),
        [
            (
                domain,
                *(
                    str(counts[place])
                    for part in parts.values()
                    for counts in (part.sequences_by_domain, part.tokens_by_domain)
                ),
            )
            for place, domain in enumerate(description.domains)
        ],
    )
    for finding in description.findings:
        yield Paragraph(f"{finding.severity.value}: {finding.message}")
    if overview.skipped:
        layers = ", ".join(str(layer.layer) for layer in overview.skipped)
        yield Paragraph(f"Layers left out: {layers}.")


def _layer_table(overview: PartOverview, layers: Sequence[int]) -> Table:
    by_column = {
        column: {each.layer: each.estimate for each in overview.over_layers.get(name, ())}
        for column, (name, _) in _COLUMNS.items()
    }
    return Table(
        ("layer", *_COLUMNS),
        [
            (
                str(layer),
                *(_cell(by_column[column].get(layer), shape) for column, (_, shape) in _COLUMNS.items()),
            )
            for layer in layers
        ],
    )


def _over_layers(analysis: TraceAnalysis, overview: PartOverview, drawn: _Drawn) -> Iterator[Picture]:
    found = overview.over_layers
    association = found.get("independence.cramers_v")
    if association:
        tested = "" if association[0].estimate.p_value is not None else " One prompt a domain: nothing to test with."
        yield drawn.picture(
            "association", pictures.draw_association(association), overview, "Domain and expert by layer",
            f"Grey: where permuted domains lie. {_significant(association)}{tested}",
        )  # fmt: skip
    repetition = found.get("stickiness.repetition")
    if repetition:
        yield drawn.picture(
            "stickiness",
            pictures.draw_stickiness(
                repetition, found["stickiness.popularity"], max(layer.num_experts for layer in analysis.layers)
            ),
            overview, "Stickiness by layer",
            f"Grey: where the same tokens in another order within their prompt lie. {_significant(repetition)}",
        )  # fmt: skip


def _looked_at(layers: Sequence[LayerAnalysis], overview: PartOverview, part: Part) -> list[LayerAnalysis]:
    """The first, the middle and the last layer, the one where domains differ most and the stickiest."""
    known = [layer for layer in layers if part in layer.parts]
    chosen = {known[0].layer, known[len(known) // 2].layer, known[-1].layer}
    for name in ("independence.cramers_v", "stickiness.excess"):
        estimates = overview.over_layers.get(name, ())
        if estimates:
            chosen.add(max(estimates, key=lambda each: each.estimate.value or 0).layer)
    return [layer for layer in known if layer.layer in chosen]


def _one_layer(
    layer: LayerAnalysis, figures: LayerFigures, description: TraceDescription, drawn: _Drawn
) -> Iterator[Block]:
    number = layer.layer
    experts = [
        description.experts[each] if each < len(description.experts) else str(each)
        for each in range(layer.num_experts)
    ]  # fmt: skip
    yield Heading(f"Layer {number}")
    if figures.frequency is not None:
        yield drawn.picture(
            f"frequency-{number}",
            pictures.draw_frequency(figures.frequency, figures.specialisation, description.domains, experts),
            figures.frequency, f"Experts by domain, layer {number}",
            "A row sums to 100 %. A dot: the domain's lift is not chance (permutation of domains between prompts, "
            "false discovery rate 5 % over the cells).",
        )  # fmt: skip
    if figures.repetition is not None:
        yield _repetition_table(figures.repetition, description.domains)
    if figures.autocorrelation is not None:
        yield drawn.picture(
            f"autocorrelation-{number}", pictures.draw_autocorrelation(figures.autocorrelation),
            figures.autocorrelation, f"Autocorrelation, layer {number}",
            "Of the indicators that an expert is among a token's, around their means in the prompt, all experts "
            "together. Grey: the same tokens in another order.",
        )  # fmt: skip
    if figures.transitions is not None:
        second = figures.transitions.second_eigenvalue
        yield drawn.picture(
            f"transitions-{number}", pictures.draw_transitions(figures.transitions, experts), figures.transitions,
            f"From one token's first choice to the next, layer {number}",
            f"Grey: never seen. Second eigenvalue {_cell(second, '{:.3f}')}{_interval(second, '{:.3f}')}, by shuffled "
            f"tokens {_number(second.null, '{:.3f}')}.",
        )  # fmt: skip
    if figures.coactivation is not None:
        strongest = figures.coactivation.strongest
        told = (
            f" Most: {experts[strongest[0].other]} in {_number(strongest[0].value, '{:.1%}')} of the tokens of "
            f"{experts[strongest[0].expert]}, by popularity {_number(strongest[0].null, '{:.1%}')}."
            if strongest
            else ""
        )
        yield drawn.picture(
            f"coactivation-{number}", pictures.draw_coactivation(figures.coactivation, experts), figures.coactivation,
            f"Experts chosen together, layer {number}", f"All pairs of a token's experts.{told}",
        )  # fmt: skip


def _repetition_table(figure: Repetition, domains: Sequence[str]) -> Table:
    """Mixtral's table 5."""
    first, second = figure.first_by_domain, figure.first_or_second_by_domain
    rows = [
        (domains[place], _number(one, "{:.1%}"), _number(other, "{:.1%}"))
        for place, (one, other) in enumerate(zip(first.value, second.value, strict=True))
        if one is not None
    ]
    return Table(
        ("neighbours with the same", "first choice", "first or second choice"),
        [
            *rows,
            ("all domains", _cell(figure.first, "{:.1%}"), _cell(figure.first_or_second, "{:.1%}")),
            ("tokens shuffled", _number(figure.first.null, "{:.1%}"), _number(figure.first_or_second.null, "{:.1%}")),
            ("random", f"{figure.random_first:.1%}", f"{figure.random_first_or_second:.1%}"),
        ],
    )


def _significant(estimates: Sequence[LayerEstimate]) -> str:
    tested = [each for each in estimates if each.estimate.q_value is not None]
    if not tested:
        return ""
    found = sum((each.estimate.q_value or 0) < 0.05 for each in tested)
    return f"Not chance in {found} of {len(tested)} layers (false discovery rate 5 %)."


def _cell(estimate: Estimate | None, shape: str) -> str:
    if estimate is None:
        return ""
    starred = estimate.q_value is not None and estimate.q_value < 0.05
    return _number(estimate.value, shape) + ("*" if starred else "")


def _interval(estimate: Estimate, shape: str) -> str:
    if estimate.low is None:
        return ""
    return f" (95 % interval {_number(estimate.low, shape)} to {_number(estimate.high, shape)})"


def _number(value: Number, shape: str) -> str:
    return "" if value is None else shape.format(value)


def _sentence(text: str | None) -> str:
    return f" {text[0].upper()}{text[1:]}." if text else ""
