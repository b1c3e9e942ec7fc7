"""`GET /health/report`: the system's report on itself, from the registry and the routing log."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import AwareDatetime
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.catalog import Snapshot
from services.router_service.dependencies import ResourcesDep
from services.router_service.health_report import UNSURE_BELOW, Subject, make_report
from services.router_service.measured_losses import read_measured_losses
from services.router_service.schemas.health_report import HealthReport
from services.router_service.usage import read_usage
from services.shared.errors import InvalidRequest, NotFound
from services.shared.storage import Storage
from services.shared.vocabulary import RouterKind

router = APIRouter(tags=["health"], responses=ERRORS)

_WINDOW: Final = timedelta(days=1)
_MAX_REQUESTS: Final = 20_000
"""The newest so many are looked at: a report takes well under a second."""


@router.get("/health/report")
async def health_report(
    resources: ResourcesDep,
    since: Annotated[
        AwareDatetime | None, Query(description="Requests since then, with its time zone; default: the last 24 hours.")
    ] = None,
) -> HealthReport:
    """Unused and unhealthy experts, load imbalance, uncertainty, and the jobs that would act on them."""
    until = datetime.now(UTC)
    begin = until - _WINDOW if since is None else since
    if begin >= until:
        raise InvalidRequest("since must lie in the past.", param="since")
    snapshot, storage = resources.catalog.current(), resources.storage

    def read(session: Session) -> HealthReport:
        usage = read_usage(session, since=begin, until=until, unsure_below=UNSURE_BELOW, max_requests=_MAX_REQUESTS)
        subject = replace(_subject(session, storage, snapshot), flagged_band=resources.settings.gaps.flagged_band)
        return make_report(subject, usage, since=begin, until=until, max_requests=_MAX_REQUESTS)

    return await resources.transactions.run(read)


def _subject(session: Session, storage: Storage, snapshot: Snapshot) -> Subject:
    release = snapshot.release
    experts = release.experts if release else ()
    digests = {ref.digest for ref in (*experts, *snapshot.registered.values())}
    return Subject(
        release=release.id if release else None,
        experts=experts,
        registered=snapshot.registered,
        router_kind=RouterKind.LEARNED if release and release.scorer.bayes is None else RouterKind.BAYES,
        is_calibrated=release is not None and release.calibration is not None,
        missing={digest for digest in digests if not _is_there(storage, digest)},
        losses=read_measured_losses(session, storage, release.id) if release else {},
    )


def _is_there(storage: Storage, digest: str) -> bool:
    try:
        storage.artifact(digest)
    except NotFound:
        return False
    return True
