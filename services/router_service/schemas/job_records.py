"""What a job leaves beside its row: metrics and artifacts."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field


class MetricPoint(BaseModel):
    """What was measured at a step."""

    step: int
    at: datetime
    figures: dict[str, Any] = Field(
        description="loss, eval_loss (nats per token), learning_rate, seconds (of this attempt's training so far), "
        "tokens_per_s (since the point before), and what else the kind measures."
    )


class MetricSeries(BaseModel):
    """A job's figures over its steps, thinned out to `max_points`."""

    object: Literal["job.metrics"] = "job.metrics"
    job: str
    data: list[MetricPoint]


class JobArtifact(BaseModel):
    """A file that a job has made. `path` goes behind `/jobs/{id}/artifacts/`."""

    object: Literal["job.artifact"] = "job.artifact"
    path: str
    num_bytes: int
    sha256: str
