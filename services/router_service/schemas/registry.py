"""Experts and releases as the API shows and takes them."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.shared.release_evaluation import Evaluation
from services.shared.vocabulary import DIGEST_PATTERN, NAME_PATTERN, VersionStatus

MAX_RELEASE_EXPERTS: Final = 4096
_VERSIONED_NAME: Final = NAME_PATTERN.removesuffix("$") + r"(?:@[1-9][0-9]{0,8})?$"
VersionedName = Annotated[str, Field(pattern=_VERSIONED_NAME, description="`math` (newest version) or `math@2`.")]
ReleaseId = Annotated[str, Field(pattern=r"^release-[1-9][0-9]{0,9}$")]
RELEASE_PREFIX: Final = "release-"


def release_number(release_id: str) -> int:
    """`release-7` -> 7; 0, which no release has, for anything else."""
    digits = release_id.removeprefix(RELEASE_PREFIX)
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else 0


class ExpertVersion(BaseModel):
    """One immutable adapter with its evidence."""

    version: int
    digest: str
    rank: int
    num_parameters: int
    num_bytes: int
    has_evidence: bool = Field(description="Whether a router can tell when it should speak.")
    source: Literal["imported", "trained"]
    job_id: str | None
    metrics: dict[str, Any]
    created_at: datetime


class Expert(BaseModel):
    """A named skill."""

    id: str
    object: Literal["expert"] = "expert"
    name: str
    domain: str | None
    description: str
    retired: bool
    pinned: bool = Field(description="Whether every replica keeps it in a slot.")
    active_version: int | None = Field(description="The version that speaks in the active release, if one does.")
    latest_version: int
    created_at: datetime
    versions: list[ExpertVersion] = Field(description="Oldest first.")


class ImportedExpert(Expert):
    """What `POST /experts` answers: also the release that was made with it, if one was asked for."""

    release: str | None = None


class Deleted(BaseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class ReleaseExpert(BaseModel):
    """A column of a release's gate."""

    name: str
    version: int
    digest: str


class Release(BaseModel):
    """A base model, a router, a graph and expert versions that are active together."""

    id: str
    object: Literal["release"] = "release"
    digest: str = Field(description="SHA-256 of what it serves: the same for the same content, in any database.")
    status: VersionStatus
    base_model: str
    base_fingerprint: str
    router_digest: str
    router_kind: str
    graph_digest: str | None
    calibration_digest: str | None
    experts: list[ReleaseExpert]
    evaluation: Evaluation | None
    note: str
    created_at: datetime
    activated_at: datetime | None


class ReleaseGraph(BaseModel):
    """A release's cooperation graph."""

    object: Literal["release.graph"] = "release.graph"
    release: str
    digest: str
    experts: list[str] = Field(description="Of the release, in its order.")
    adjacency: list[list[float]] = Field(
        description="Row i, column j: how much of expert i's gate weight is added to j's; the diagonal is zero."
    )
    sparsity: float = Field(description="Share of exact zeros off the diagonal.")


class ReleaseRequest(BaseModel):
    """A release to make; it is staged until it is activated."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"experts": ["math", "code@1"], "note": "math retrained"},
                {"experts": ["math"], "router_job": "job-0123456789abcdef0123456789abcdef"},
            ]
        },
    )

    experts: tuple[VersionedName, ...] = Field(
        max_length=MAX_RELEASE_EXPERTS, description="The gate's columns, in order."
    )
    router: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = Field(
        default=None, description="Digest of a router artifact. Default: the active release's router."
    )
    router_job: str | None = Field(default=None, max_length=64, description="Or the router that this job made.")
    graph: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = Field(
        default=None, description="Digest of a cooperation graph; null for none."
    )
    calibration: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = Field(
        default=None,
        description="Digest of a calibration. Default: the active release's, where its router is taken too.",
    )
    evaluation: Evaluation | None = Field(
        default=None, description="How good it is; compared with the active release's before it is activated."
    )
    note: str = Field(default="", max_length=2000)

    @model_validator(mode="after")
    def _one_router(self) -> Self:
        if self.router is not None and self.router_job is not None:
            raise ValueError("router and router_job exclude each other: give one of them.")
        return self


class IfActive(BaseModel):
    """Which release a client believes to be the active one."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"if_active": "release-1"}]})

    if_active: ReleaseId | None = Field(
        default=None,
        description="Go on only if this release is the active one; null: only if none is. Left out: in any case.",
    )


class Activation(IfActive):
    """What to check before a release is activated."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"if_active": "release-1"}, {"force": True}]})

    force: bool = Field(default=False, description="Activate it even if it is worse in a domain than is tolerated.")
