"""Gaps as the API shows them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.shared.vocabulary import GapStatus


class ClosedBy(BaseModel):
    """The job that made an expert for a gap, and the release that it speaks in."""

    job: str
    release: str | None
    at: datetime


class Gap(BaseModel):
    """A kind of request that the mixture cannot answer well."""

    id: str
    object: Literal["gap"] = "gap"
    status: GapStatus
    merged_into: str | None
    closed_by: ClosedBy | None
    follows: str | None = Field(description="A closed gap that it is like: what was still flagged after its closing.")
    domain: str = Field(description="That most of its requests were taken for, or `unknown`.")
    expert_name: str = Field(description="Proposed for an expert that would fill it.")
    keywords: list[str] = Field(description="Words of its prompts that others have not; none where they are not kept.")
    num_prompts: int
    trend: float = Field(
        description="Requests in the second half of the window over those in the first; above 1: more."
    )
    release: str | None = Field(description="That answered most of them.")
    created_at: datetime
    updated_at: datetime
    last_seen_at: datetime = Field(description="When its youngest request came.")


class GapDetail(Gap):
    """A gap with what the last analysis has found out about it."""

    job: str = Field(description="That analysis.")
    report: dict[str, Any] = Field(
        description="Typical prompts, counts by day, measured losses, the nearest expert, the data that is asked for."
    )
    requests: list[str] = Field(description="Ids of its requests in the routing log, at most a thousand.")


class Merge(BaseModel):
    """Which gap takes the requests."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"into": "gap-0a1b2c3d4e5f"}]}
    )

    into: str = Field(min_length=1, max_length=64)
