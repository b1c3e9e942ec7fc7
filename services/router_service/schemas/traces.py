"""Traces and their figures as the API shows them."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from services.shared.schemas.jobs import Job
from services.shared.vocabulary import TraceStatus
from services.traces.description import TraceDescription
from services.traces.statistics.results import (
    AnalysisOverview,
    Autocorrelation,
    Cache,
    Coactivation,
    Divergence,
    Entropy,
    FigureName,
    Frequency,
    Independence,
    LayerAnalysis,
    Load,
    MutualInformation,
    Overlap,
    Part,
    Repetition,
    ReuseDistance,
    RunLengths,
    Saturation,
    Specialisation,
    Stickiness,
    Transitions,
    Vocabulary,
)

AnyFigure = (
    Frequency | Independence | Divergence | MutualInformation | Entropy | Specialisation | Autocorrelation | Repetition
    | Stickiness | RunLengths | Transitions | Coactivation | Vocabulary | Load | Overlap | ReuseDistance | Cache
    | Saturation
)  # fmt: skip


class TraceError(BaseModel):
    """Why a trace has failed."""

    message: str
    type: str
    param: str | None
    code: str


class Trace(BaseModel):
    """Which experts were chosen at every token, in every layer."""

    id: str
    object: Literal["trace"] = "trace"
    name: str
    status: TraceStatus
    source: str | None = Field(description="Where choices were recorded, or the format that they came in.")
    job: str = Field(description="That makes it; `GET /jobs/{id}` tells how far it is.")
    description: TraceDescription | None = Field(description="There when it is ready, with what is wrong in it.")
    error: TraceError | None
    created_at: datetime


class SubmittedTrace(BaseModel):
    """A trace that is being made, and the job that makes it."""

    trace: Trace
    job: Job


class TracedPrompt(BaseModel):
    """A sequence of a trace: one observation."""

    sequence: int
    domain: str
    prompt: str


class TracedPrompts(BaseModel):
    """Some sequences of a trace."""

    object: Literal["list"] = "list"
    data: list[TracedPrompt]
    total: int


class LayerFigureNames(BaseModel):
    """What there is of one layer, by part of its tokens; and why the others are not there."""

    figures: dict[Part, list[FigureName]]
    missing: dict[Part, dict[FigureName, str]]


class AnalysisIndex(BaseModel):
    """An analysis without the layers' own figures."""

    trace: str
    overview: AnalysisOverview
    layers: dict[int, LayerFigureNames]


class FigureAnswer(BaseModel):
    """One figure."""

    trace: str
    figure: FigureName
    layer: int | None = Field(description="None for what is of all layers together.")
    phase: Part
    data: AnyFigure


class ChosenToken(BaseModel):
    """What one token chose in one layer, by falling weight."""

    position: int
    phase: Literal["prompt", "generated", "padding"]
    token_id: int | None
    experts: list[int]
    weights: list[float] | None


class ChosenTokens(BaseModel):
    """Some tokens of one sequence in one layer; positions may have gaps, where tokens were left out."""

    trace: str
    layer: int
    num_experts: int
    sequence: int
    domain: str
    prompt: str
    tokens: list[ChosenToken]


class LiveAnalysis(BaseModel):
    """The analysis of the routing log: one layer, whose experts are those of the active release, and `base`."""

    since: datetime
    num_requests: Annotated[int, Field(description="Routed ones that kept their tokens, the newest.")]
    is_whole: bool = Field(description="False when there were more than are looked at.")
    releases: dict[str, int] = Field(description="Requests by the release that routed them.")
    overview: AnalysisOverview
    layer: LayerAnalysis | None = Field(description="None when there is no such request.")
