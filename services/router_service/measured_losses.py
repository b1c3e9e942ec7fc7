"""What the newest evaluation job of a release has measured of its experts, beside the base model."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import StatisticsError, fmean
from typing import Any

from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.shared.database.rows import JobRow
from services.shared.errors import NotFound
from services.shared.storage import Storage
from services.shared.telemetry import get_logger
from services.shared.vocabulary import BASE, JobKind, JobStatus

log = get_logger(__name__)


@dataclass(frozen=True)
class MeasuredLoss:
    """On an expert's own domain, nats per token."""

    routed: float
    base: float

    @property
    def is_worse(self) -> bool:
        """Whether the release would do better without it."""
        return self.routed > self.base


class _System(BaseModel):
    domains: dict[str, float]


class _Seed(BaseModel):
    systems: dict[str, _System]


class _Report(BaseModel):
    """What is read of an evaluation's `report.json`."""

    domains: dict[str, str]
    losses: dict[str, float]
    seeds: list[_Seed]


def read_measured_losses(session: Session, storage: Storage, release: str) -> dict[str, MeasuredLoss]:
    """By expert; empty where no evaluation job of the release has succeeded, or its report is gone."""
    query = (
        select(JobRow.result)
        .where(
            JobRow.kind == JobKind.EVALUATION.value,
            JobRow.status == JobStatus.SUCCEEDED.value,
            JobRow.result["release"].astext == release,
        )
        .order_by(JobRow.created_at.desc())
        .limit(1)
    )
    result: Mapping[str, Any] | None = session.scalar(query)
    if result is None:
        return {}
    try:
        path = storage.artifact(result["artifacts"]["report"]) / "report.json"
        report = _Report.model_validate_json(path.read_bytes())
        return {
            expert: MeasuredLoss(
                report.losses[domain], fmean(seed.systems[BASE].domains[domain] for seed in report.seeds)
            )
            for domain, expert in report.domains.items()
            if domain in report.losses
        }
    except (NotFound, KeyError, OSError, StatisticsError, ValidationError) as error:
        log.warning("the report of an evaluation cannot be read", release=release, reason=repr(error)[:200])
        return {}
