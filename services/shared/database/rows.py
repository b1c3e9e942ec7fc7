"""The tables. A row is what is remembered; schemas are what is sent; networks are what is learned."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from services.shared.release_content import ReleaseContent
from services.shared.vocabulary import GapStatus, JobQueue, TraceStatus, VersionStatus

Json = dict[str, Any]


class Row(DeclarativeBase):
    """Base of all rows; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
        bytes: LargeBinary,
    }


class FileRow(Row):
    """An uploaded file; its bytes are in storage under the id."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str]
    filename: Mapped[str]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ExpertRow(Row):
    """A named skill; its adapters are versions."""

    __tablename__ = "experts"

    name: Mapped[str] = mapped_column(primary_key=True)
    domain: Mapped[str | None]
    description: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]
    pinned_at: Mapped[datetime | None]

    versions: Mapped[list["ExpertVersionRow"]] = relationship(
        back_populates="expert", order_by="ExpertVersionRow.version", lazy="raise"
    )


class ExpertVersionRow(Row):
    """One immutable adapter with its evidence, by digest."""

    __tablename__ = "expert_versions"
    __table_args__ = (UniqueConstraint("expert_name", "version"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    expert_name: Mapped[str] = mapped_column(ForeignKey("experts.name"))
    version: Mapped[int]
    digest: Mapped[str]
    base_fingerprint: Mapped[str]
    rank: Mapped[int]
    num_parameters: Mapped[int] = mapped_column(BigInteger)
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    has_evidence: Mapped[bool]
    source: Mapped[str]  # imported | trained
    job_id: Mapped[str | None]
    metrics: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    expert: Mapped[ExpertRow] = relationship(back_populates="versions", lazy="raise")


class ReleaseRow(Row):
    """One base model, router, graph and set of expert versions, active together. At most one is active."""

    __tablename__ = "releases"
    __table_args__ = (
        Index(
            "uq_releases_one_active",
            "status",
            unique=True,
            postgresql_where=text(f"status = '{VersionStatus.ACTIVE}'"),
        ),
    )

    number: Mapped[int] = mapped_column(Identity(), primary_key=True)
    base_model: Mapped[str]
    base_fingerprint: Mapped[str]
    router_digest: Mapped[str]
    router_kind: Mapped[str]
    graph_digest: Mapped[str | None]
    calibration_digest: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default=VersionStatus.STAGED.value)
    note: Mapped[str] = mapped_column(server_default="")
    evaluation: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    activated_at: Mapped[datetime | None]

    experts: Mapped[list["ReleaseExpertRow"]] = relationship(order_by="ReleaseExpertRow.position", lazy="raise")

    @property
    def id(self) -> str:
        """The name that people and requests use: `release-7`."""
        return f"release-{self.number}"

    @property
    def content(self) -> ReleaseContent:
        """What it serves; needs its experts loaded."""
        return ReleaseContent(
            base_fingerprint=self.base_fingerprint,
            router=self.router_digest,
            graph=self.graph_digest,
            calibration=self.calibration_digest,
            experts=tuple((column.version.expert_name, column.version.digest) for column in self.experts),
        )


class ReleaseExpertRow(Row):
    """A column of a release's gate."""

    __tablename__ = "release_experts"

    release_number: Mapped[int] = mapped_column(ForeignKey("releases.number"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("expert_versions.id"))

    version: Mapped[ExpertVersionRow] = relationship(lazy="raise")


class ReleaseActivationRow(Row):
    """That a release became the active one; in their order they are the way back."""

    __tablename__ = "release_activations"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    release_number: Mapped[int] = mapped_column(ForeignKey("releases.number"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    undone_at: Mapped[datetime | None]  # when a rollback took it back


class JobRow(Row):
    """A job: the truth about it. The broker's message only says that it is there (DESIGN D6)."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_status_created_at", "status", "created_at"),
        Index("ix_jobs_user_name_status", "user_name", "status"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)  # a client's repeated POST finds its first job
    kind: Mapped[str]
    status: Mapped[str]
    spec: Mapped[Json]
    queue: Mapped[str] = mapped_column(server_default=JobQueue.CPU.value)
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    base_fingerprint: Mapped[str | None]  # of the base model that it was submitted for
    user_name: Mapped[str | None]  # `user` is a word of SQL's own
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    owner: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    pause_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    phase: Mapped[str] = mapped_column(server_default="")
    step: Mapped[int] = mapped_column(server_default=text("0"))
    total_steps: Mapped[int | None]
    loss: Mapped[float | None]
    seconds_left: Mapped[float | None]
    checkpoints: Mapped[list[Json] | None] = mapped_column(JSONB(none_as_null=True))  # published, by step
    result: Mapped[Json | None]
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobEventRow(Row):
    """Something that happened in a job, in order."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    level: Mapped[str]  # info | warn | error
    type: Mapped[str]  # message | metrics | status
    message: Mapped[str]
    data: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))


class JobMetricRow(Row):
    """What a job measured at one step: its loss and the like. A step that is done again overwrites its figures."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    figures: Mapped[Json]


class RequestRow(Row):
    """The routing log of one request. Per-token experts and weights are packed arrays (router_service/token_log.py)."""

    __tablename__ = "requests"
    __table_args__ = (
        Index("ix_requests_at_id", "at", "id"),
        Index(
            "ix_requests_attribution",
            "attribution",
            postgresql_using="gin",
            postgresql_ops={"attribution": "jsonb_path_ops"},
        ),
        Index("ix_requests_flagged_at_id", "at", "id", postgresql_where=text("flagged")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    endpoint: Mapped[str]
    release: Mapped[str | None]
    plan: Mapped[Json]
    prompt: Mapped[str | None]
    generated_text: Mapped[str | None]
    parameters: Mapped[Json]
    num_prompt_tokens: Mapped[int]
    num_generated_tokens: Mapped[int]
    confidence: Mapped[float | None]
    attribution: Mapped[list[Json]] = mapped_column(JSONB)
    token_log: Mapped[bytes | None]
    finish_reason: Mapped[str | None]
    error: Mapped[Json | None]
    timings: Mapped[Json]
    flagged: Mapped[bool | None]  # outside of what the release knows; NULL: it has no calibration
    domain: Mapped[str | None]
    domain_probability: Mapped[float | None]
    states: Mapped[bytes | None]  # the mean of the prompt's early hidden states (packed_states.py)
    prompt_nats: Mapped[float | None]  # of the prompt under the mixture, nats per token
    base_nats: Mapped[float | None]  # and under the base model alone


class GapRow(Row):
    """A kind of request that the mixture cannot answer well, found among those that were flagged."""

    __tablename__ = "gaps"
    __table_args__ = (Index("ix_gaps_status_last_seen_at_id", "status", "last_seen_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(server_default=GapStatus.OPEN.value)
    merged_into: Mapped[str | None] = mapped_column(ForeignKey("gaps.id"))
    follows: Mapped[str | None] = mapped_column(ForeignKey("gaps.id"))  # a closed one that it is like
    base_fingerprint: Mapped[str]  # whose hidden states `centroid` is made of
    release: Mapped[str | None]  # the one that answered most of its requests
    num_prompts: Mapped[int]
    trend: Mapped[float]  # requests of the window's second half over those of its first
    domain: Mapped[str]
    keywords: Mapped[list[str]] = mapped_column(JSONB)
    expert_name: Mapped[str]  # proposed
    centroid: Mapped[bytes]  # [D], packed_states.py
    report: Mapped[Json]
    job_id: Mapped[str]  # the analysis that saw it last
    closed_by_job: Mapped[str | None]
    closed_by_release: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime]  # its youngest request
    closed_at: Mapped[datetime | None]


class GapRequestRow(Row):
    """That a request belongs to a gap; it belongs to one at most."""

    __tablename__ = "gap_requests"
    __table_args__ = (Index("ix_gap_requests_gap_id", "gap_id"),)

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id", ondelete="CASCADE"), primary_key=True)
    gap_id: Mapped[str] = mapped_column(ForeignKey("gaps.id", ondelete="CASCADE"))


class TraceRow(Row):
    """Which experts were chosen at every token: the trace and what was made of it are artifacts, named here."""

    __tablename__ = "traces"
    __table_args__ = (Index("ix_traces_created_at_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=TraceStatus.IMPORTING.value)
    source: Mapped[str | None]  # the rest is known when it is ready
    digest: Mapped[str | None]
    analysis_digest: Mapped[str | None]
    description: Mapped[Json | None]  # services/traces/description.py
    error: Mapped[Json | None]
    job_id: Mapped[str] = mapped_column(unique=True)  # the job that makes it
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
