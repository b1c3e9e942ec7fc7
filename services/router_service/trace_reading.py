"""Traces and analyses out of storage; blocking, so called in threads. What is missing is a NotFound that says why."""

from functools import lru_cache
from pathlib import Path

from services.router_service.schemas.traces import (
    AnalysisIndex,
    AnyFigure,
    ChosenToken,
    ChosenTokens,
    FigureAnswer,
    LayerFigureNames,
    TracedPrompt,
    TracedPrompts,
)
from services.shared.database.rows import TraceRow
from services.shared.errors import InvalidRequest, NotFound
from services.shared.storage import Storage
from services.traces.analysis import read_layer, read_overview
from services.traces.choices import Phase
from services.traces.importers.buffer_timeline import BUFFERS, AllBuffers
from services.traces.statistics.results import FigureName, LayerAnalysis, Part
from services.traces.table import Trace
from services.traces.window import choices_between

_NOT_OF_A_LAYER = frozenset({FigureName.CACHE, FigureName.SATURATION})


class TraceReading:
    """Reads one trace that is ready."""

    def __init__(self, row: TraceRow, storage: Storage) -> None:
        assert row.digest is not None
        assert row.analysis_digest is not None
        self._id = row.id
        self._folder = storage.artifact(row.digest)
        self._analysis = storage.artifact(row.analysis_digest)

    def index(self) -> AnalysisIndex:
        """Which figures there are."""
        return AnalysisIndex(trace=self._id, overview=read_overview(self._analysis), layers=_names(self._analysis))

    def figure(self, name: FigureName, *, layer: int | None, part: Part) -> FigureAnswer:
        """One figure of a layer, or of all layers where it is no layer's."""
        if name is FigureName.SATURATION:
            raise InvalidRequest(
                "saturation compares two traces: name the final checkpoint's in `final`.", param="final"
            )
        if name is FigureName.CACHE:
            overview = read_overview(self._analysis).parts.get(part)
            return self._answer(name, None, part, overview.cache if overview is not None else None)
        number = self._layer_number(layer)
        figures = self._layer(number).parts.get(part)
        if figures is None:
            raise _missing(f"Layer {number} of {self._id} has no {part} tokens.")
        found = getattr(figures, name.value)
        if found is None:
            raise _missing(f"Layer {number} of {self._id} has no {name}: {figures.missing.get(name, 'not computed')}.")
        return self._answer(name, number, part, found)

    def saturation(self, final: "TraceReading") -> FigureAnswer:
        """How much of another trace's routing of the same tokens is there in this one."""
        from services.traces.comparison import compare

        data = compare(Trace(self._folder), Trace(final._folder))
        return self._answer(FigureName.SATURATION, None, Part.ALL, data)

    def prompts(self, *, start: int, count: int) -> TracedPrompts:
        """Some of its sequences."""
        sequences = Trace(self._folder).sequences
        data = [
            TracedPrompt(sequence=number, domain=each.domain, prompt=each.prompt)
            for number, each in enumerate(sequences[start : start + count], start)
        ]
        return TracedPrompts(data=data, total=len(sequences))

    def choices(self, *, layer: int, sequence: int, start: int, count: int) -> ChosenTokens:
        """Some tokens of a sequence in a layer."""
        trace = Trace(self._folder)
        traced = next((each for each in trace.description.layers if each.layer == layer), None)
        if traced is None:
            raise self._no_layer(layer, trace.layers)
        if sequence >= len(trace.sequences):
            raise _missing(f"{self._id} has {len(trace.sequences)} sequences, from 0.", param="sequence")
        whence = trace.sequences[sequence]
        tokens = choices_between(trace, layer, sequence, start=start, count=count)
        return ChosenTokens(
            trace=self._id,
            layer=layer,
            num_experts=traced.num_experts,
            sequence=sequence,
            domain=whence.domain,
            prompt=whence.prompt,
            tokens=[
                ChosenToken(
                    position=token.position,
                    phase=_PHASES[Phase(token.phase)],
                    token_id=token.token_id,
                    experts=list(token.experts),
                    weights=list(token.weights) if token.weights is not None else None,
                )
                for token in tokens
            ],
        )

    def buffers(self) -> AllBuffers:
        """What was allocated when, where that was recorded."""
        file = self._folder / BUFFERS
        if not file.is_file():
            raise _missing(
                f"{self._id} came without allocation events: import them beside the choices.", code="buffers_not_found"
            )
        return AllBuffers.model_validate_json(file.read_bytes())

    def report(self, name: str) -> Path:
        """The file of its report."""
        file = self._analysis / name
        if not file.is_file():
            raise _missing(
                f"{self._id} has no {name}: it was made by an older version. Import or trace again.",
                code="report_not_found",
            )
        return file

    def _answer(self, name: FigureName, layer: int | None, part: Part, data: AnyFigure | None) -> FigureAnswer:
        if data is None:
            raise _missing(f"{self._id} has no {name} of {part} tokens.")
        return FigureAnswer(trace=self._id, figure=name, layer=layer, phase=part, data=data)

    def _layer_number(self, layer: int | None) -> int:
        if layer is not None:
            return layer
        layers = read_overview(self._analysis).layers
        if len(layers) == 1:
            return layers[0]
        raise InvalidRequest(f"Name a layer: {_told(layers)} have figures.", param="layer")

    def _layer(self, number: int) -> LayerAnalysis:
        try:
            return read_layer(self._analysis, number)
        except FileNotFoundError:
            overview = read_overview(self._analysis)
            for skipped in overview.skipped:
                if skipped.layer == number:
                    raise _missing(f"Layer {number} of {self._id} has no figures: {skipped.reason}") from None
            raise self._no_layer(number, overview.layers) from None

    def _no_layer(self, number: int, layers: list[int] | tuple[int, ...]) -> NotFound:
        return _missing(f"{self._id} has no layer {number}: {_told(layers)} are there.", param="layer")


_PHASES = {Phase.PROMPT: "prompt", Phase.GENERATED: "generated", Phase.PADDING: "padding"}


@lru_cache(maxsize=64)
def _names(folder: Path) -> dict[int, LayerFigureNames]:
    """Of an analysis, which never changes: its folder is named after its content."""
    named = {}
    for number in read_overview(folder).layers:
        parts = read_layer(folder, number).parts
        named[number] = LayerFigureNames(
            figures={
                part: [
                    name
                    for name in FigureName
                    if name not in _NOT_OF_A_LAYER and getattr(figures, name.value) is not None
                ]
                for part, figures in parts.items()
            },
            missing={part: dict(figures.missing) for part, figures in parts.items()},
        )
    return named


def _told(layers: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, layers[:64])) or "none"


def _missing(message: str, *, param: str | None = None, code: str = "figure_not_found") -> NotFound:
    return NotFound(message, param=param, code=code if param is None else f"{param}_not_found")
