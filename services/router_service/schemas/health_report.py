"""What `GET /health/report` tells of the system's own state."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field

from services.shared.vocabulary import JobKind


class Problem(StrEnum):
    """What can be wrong with an expert."""

    UNUSED = "unused"  # no weight in any answer
    NOT_IN_STORAGE = "not_in_storage"  # its artifact is gone
    FAILS = "fails"  # its adapter could not be used (gone, damaged or not servable), and it has not spoken since
    WORSE_THAN_BASE = "worse_than_base"  # in the newest evaluation of the release, on its own domain


class ReportWindow(BaseModel):
    """The requests that were looked at."""

    since: datetime
    until: datetime
    num_requests: int
    num_failed: int = Field(description="Those that ended with an error.")
    num_generated_tokens: int
    complete: bool = Field(description="False: there were more, and only the newest so many were looked at.")


class ExpertHealth(BaseModel):
    """An expert of the active release, or one that is registered only."""

    name: str
    version: int
    in_release: bool
    num_requests: int = Field(description="In whose answers it had weight.")
    token_share: float = Field(description="Its share of all generated tokens.")
    num_failed: int = Field(description="Requests that failed because its adapter could not be used.")
    loss: float | None = Field(
        description="Of the release on its domain, nats per token, by the newest evaluation job."
    )
    base_loss: float | None = Field(description="Of the base model on the same.")
    problems: list[Problem]


class Uncertainty(BaseModel):
    """How often the release was not sure of a prompt."""

    rate: float | None = Field(description="Share of the requests that were judged; null if none was.")
    num_judged: int
    basis: Literal["flagged", "confidence"] = Field(
        description="`flagged` by the release's calibration; without one, `confidence` below `threshold`."
    )
    threshold: float | None
    band: tuple[float, float] = Field(description="Where the rate is expected: the setting gaps.flagged_band.")
    drift: Literal["below", "above"] | None = Field(
        description="Where it is instead, if the release flags requests and enough were judged. Nothing changes by "
        "itself."
    )


class Suggestion(BaseModel):
    """What could be done, and the job that does it: `spec` with the fields of `fill_in` is a body of POST /jobs."""

    reason: str
    kind: JobKind
    spec: dict[str, Any]
    fill_in: list[str]


class HealthReport(BaseModel):
    """The system's report on itself."""

    object: Literal["health.report"] = "health.report"
    window: ReportWindow
    release: str | None
    experts: list[ExpertHealth] = Field(description="Those of the release first, the most used first.")
    unused: list[str] = Field(description="Experts of the release, and registered ones, without weight in the window.")
    unhealthy: list[str] = Field(description="Experts with any other problem.")
    base_share: float | None = Field(description="The base model's own share of the generated tokens.")
    load_imbalance: float | None = Field(
        description="Standard deviation over mean of the token shares of the release's experts: 0 when all speak "
        "alike. Above 1.5 the router should be trained. Null without tokens of experts."
    )
    uncertainty: Uncertainty
    suggestions: list[Suggestion]
