"""What differs between two releases."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from services.router_service.schemas.registry import ReleaseExpert

Value = TypeVar("Value")


class Change(BaseModel, Generic[Value]):
    """A value in `a` and in `b`."""

    a: Value
    b: Value


class FigureChange(BaseModel):
    """A figure that both have."""

    a: float
    b: float
    difference: float = Field(description="b - a")


class ExpertChange(BaseModel):
    """An expert of both releases whose adapter or evidence differs."""

    name: str
    a: ReleaseExpert
    b: ReleaseExpert
    metrics: dict[str, FigureChange] = Field(description="What was measured when the versions were made.")


class ExpertChanges(BaseModel):
    """The gate's columns."""

    added: list[ReleaseExpert] = Field(description="Only in `b`.")
    removed: list[ReleaseExpert] = Field(description="Only in `a`.")
    changed: list[ExpertChange]
    unchanged: list[str]
    reordered: bool = Field(description="Whether those of both stand in another order.")


class RouterChange(BaseModel):
    """Two routers."""

    digest: Change[str]
    settings: dict[str, Change[Any]] | None = Field(
        description="Those that differ; null where a router's files are no longer there."
    )


class EvaluationChange(BaseModel):
    """Losses of both on the same data, in nats per token."""

    domains: dict[str, FigureChange]
    regressions: list[str] = Field(description="Domains in which `b` is worse by more than `tolerance`.")
    tolerance: float


class ReleaseComparison(BaseModel):
    """Everything that differs between releases `a` and `b`; null where nothing does."""

    object: Literal["release.comparison"] = "release.comparison"
    a: str
    b: str
    digest: Change[str]
    same_content: bool
    base_fingerprint: Change[str] | None
    experts: ExpertChanges
    router: RouterChange | None
    graph: Change[str | None] | None
    calibration: Change[str | None] | None
    evaluation: EvaluationChange | None = Field(
        description="Null where one has no evaluation, or where they were not made on the same data."
    )
