"""Two traces of the same tokens, of an earlier checkpoint and of the final one."""

from collections.abc import Sequence
from typing import Final

from services.traces.choices import Phase
from services.traces.statistics.errors import NoSuchFigure
from services.traces.statistics.results import AnalysisOptions, LayerSaturation, Saturation, SkippedLayer
from services.traces.statistics.saturation import alike, saturation
from services.traces.table import Trace, TracedSequence

_READ: Final = (Phase.PROMPT, Phase.GENERATED)


def compare(earlier: Trace, final: Trace, *, options: AnalysisOptions | None = None) -> Saturation:
    """Router saturation: how much of `final`'s routing of the same tokens is there in an earlier checkpoint."""
    options = options or AnalysisOptions()
    pairs = _same_sequences(earlier.sequences, final.sequences)
    layers, left_out, num_matched = [], [], 0
    for number in final.layers:
        try:
            layers.append(_layer_saturation(earlier, final, number, pairs, options))
            num_matched = max(num_matched, layers[-1].num_sequences)
        except NoSuchFigure as error:
            left_out.append(SkippedLayer(layer=number, reason=str(error)))
    return Saturation(
        layers=tuple(layers),
        left_out=tuple(left_out),
        num_unmatched=len(earlier.sequences) + len(final.sequences) - 2 * num_matched,
    )


def _same_sequences(earlier: Sequence[TracedSequence], final: Sequence[TracedSequence]) -> list[tuple[int, int]]:
    """By domain and name; of several with one name the first and the first, and so on."""
    waiting: dict[TracedSequence, list[int]] = {}
    for number, sequence in enumerate(final):
        waiting.setdefault(sequence, []).append(number)
    return [(place, waiting[sequence].pop(0)) for place, sequence in enumerate(earlier) if waiting.get(sequence)]


def _layer_saturation(
    earlier: Trace, final: Trace, number: int, pairs: Sequence[tuple[int, int]], options: AnalysisOptions
) -> LayerSaturation:
    for trace in (earlier, final):
        if number not in trace.layers or trace.description.is_degenerate(number):
            raise NoSuchFigure("one of the traces has no such layer, or it is degenerate")
    first, second = alike(earlier.layer(number).of(*_READ), final.layer(number).of(*_READ), pairs)
    # Domains are the final trace's, so that both are told by one list.
    return saturation(first, second, num_domains=len(final.description.domains), options=options)
