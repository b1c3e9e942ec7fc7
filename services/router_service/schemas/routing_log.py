"""The routing log of past requests, and what a prompt would be routed to."""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from services.router_service.schemas.generation import ExpertShare, GenerateParameters, Plan

_EXAMPLES: Final[list[JsonValue]] = [{"inputs": "Write a Python function that sums the even numbers of a list."}]


class RouteRequest(BaseModel):
    """A prompt to score; of the parameters those that name experts and `truncate` count."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": _EXAMPLES})

    inputs: str = Field(min_length=1)
    parameters: GenerateParameters = GenerateParameters()


class ScoredToken(BaseModel):
    """A prompt token with the gate after it: what predicts the token that follows."""

    id: int
    text: str
    scores: dict[str, float]
    weights: dict[str, float]


class RouteResponse(BaseModel):
    """Where a prompt would go."""

    release: str | None
    confidence: float | None
    domain: str | None
    domain_probability: float | None
    gap: bool | None
    plan: Plan
    num_tokens: int
    tokens: list[ScoredToken] = Field(description="Scores are there when a release decides; they name `base` as well.")


class LoggedToken(BaseModel):
    """A token of a past request with the weights under which it was predicted (of prompt tokens: those after it)."""

    index: int
    id: int
    text: str
    generated: bool
    weights: dict[str, float]


class RequestSummary(BaseModel):
    """A past request without its tokens."""

    id: str
    object: Literal["request"] = "request"
    at: datetime
    endpoint: str
    release: str | None
    prompt: str | None
    generated_text: str | None
    num_prompt_tokens: int
    num_generated_tokens: int
    confidence: float | None
    domain: str | None
    domain_probability: float | None
    flagged: bool | None = Field(description="Null: the release had no calibration.")
    attribution: list[ExpertShare]
    finish_reason: str | None
    error: dict[str, Any] | None
    timings: dict[str, Any]


class LoggedRequest(RequestSummary):
    """A past request with its plan and the gate's choice at every token."""

    plan: dict[str, Any]
    parameters: dict[str, Any]
    tokens: list[LoggedToken]
