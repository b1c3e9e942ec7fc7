"""New releases from names: which versions, which router, for which base model."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.router_service.schemas.registry import ReleaseRequest
from services.shared.database.rows import ExpertVersionRow, JobRow, ReleaseRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.modeling.router_artifact import read_router_file
from services.shared.registry import active_release, create_release, find_version, latest_versions
from services.shared.schemas.sequences import BaseModelInfo
from services.shared.storage import Storage
from services.shared.vocabulary import RouterKind

BaseModel = tuple[str, str]
"""A base model's name and fingerprint."""


def make_release(
    session: Session, request: ReleaseRequest, *, storage: Storage, hosted: BaseModelInfo | None
) -> ReleaseRow:
    """A staged release of what `request` names, for the base model that the replicas host."""
    active = active_release(session)
    router_digest = _router_digest(session, request, active)
    calibration = _calibration_digest(request, active)
    for digest in (request.graph, calibration):
        if digest is not None:
            _held(storage, digest)
    name, fingerprint = base_of(active, hosted)
    versions = _versions(session, [_parted(named) for named in request.experts])
    return create_release(
        session,
        base_model=name,
        base_fingerprint=fingerprint,
        router_digest=router_digest,
        router_kind=read_router_file(_held(storage, router_digest)).kind,
        graph_digest=request.graph,
        version_ids=[version.id for version in versions],
        note=request.note,
        evaluation=request.evaluation,
        calibration_digest=calibration,
    )


def _held(storage: Storage, digest: str) -> Path:
    """An artifact that is not removed as garbage before this release refers to it."""
    folder = storage.artifact(digest)
    storage.hold(digest)
    return folder


def extend_release(
    session: Session, version_id: int, *, expert: str, hosted: BaseModelInfo | None
) -> tuple[ReleaseRow, int | None]:
    """A staged release like the active one with this version of `expert` in it, and the active one's number.

    Without an active release its router is that of the newest release for the same base model.
    """
    active = active_release(session)
    name, fingerprint = base_of(active, hosted)
    model = active or _newest_release_for(session, fingerprint)
    if model is None:
        raise Conflict(
            "There is no router yet that a release could use: make one with POST /jobs {'kind': 'router', 'experts': "
            f"['{expert}']}}, or register the expert without add_to_release.",
            param="add_to_release",
            code="no_router",
        )
    release = create_release(
        session,
        base_model=name,
        base_fingerprint=fingerprint,
        router_digest=model.router_digest,
        router_kind=model.router_kind,
        graph_digest=active.graph_digest if active else None,
        calibration_digest=active.calibration_digest if active else None,
        version_ids=_with_version(active, version_id, expert),
        note=f"{expert} joins" + (f" {active.id}" if active else ""),
    )
    return release, active.number if active else None


def refuse_hopeless_extension(
    session: Session, *, expert: str, has_evidence: bool, hosted: BaseModelInfo | None
) -> None:
    """Raise what `extend_release` would trip over, before anything is uploaded anywhere."""
    active = active_release(session)
    _, fingerprint = base_of(active, hosted)
    model = active or _newest_release_for(session, fingerprint)
    if model is not None and model.router_kind == RouterKind.BAYES and not has_evidence:
        raise InvalidRequest(
            "add_to_release needs exemplars: from them the router learns when the expert should speak. Send texts of "
            "its domain as `exemplars`, or register it without add_to_release and name it per request with adapter_id.",
            param="exemplars",
        )


def _versions(session: Session, named: Sequence[tuple[str, int | None]]) -> list[ExpertVersionRow]:
    """The versions by name; the newest ones in one query, so that a thousand experts are no thousand queries."""
    newest = latest_versions(session, [name for name, version in named if version is None])
    by_name = {row.expert_name: row for row in newest}
    return [by_name[name] if version is None else find_version(session, name, version) for name, version in named]


def _parted(named: str) -> tuple[str, int | None]:
    name, _, version = named.partition("@")
    return name, int(version) if version else None


def base_of(active: ReleaseRow | None, hosted: BaseModelInfo | None) -> BaseModel:
    """What the replicas host; while none answers, what the active release was made for."""
    if hosted is not None:
        return hosted.name, hosted.fingerprint
    if active is not None:
        return active.base_model, active.base_fingerprint
    raise Conflict("No expert replica has told its base model yet: try again when /ready says so.", code="not_ready")


def _router_digest(session: Session, request: ReleaseRequest, active: ReleaseRow | None) -> str:
    if request.router is not None:
        return request.router
    if request.router_job is not None:
        return _router_of_job(session, request.router_job)
    if active is None:
        raise InvalidRequest(
            "No release is active whose router could be taken: name a router or a router_job.", param="router"
        )
    return active.router_digest


def _calibration_digest(request: ReleaseRequest, active: ReleaseRow | None) -> str | None:
    """A calibration speaks of one router's numbers: with another router there is none unless it is named."""
    takes_router = request.router is None and request.router_job is None
    return request.calibration or (active.calibration_digest if active is not None and takes_router else None)


def _router_of_job(session: Session, job_id: str) -> str:
    job = session.get(JobRow, job_id)
    if job is None:
        raise NotFound(f"No job {job_id!r}.", param="router_job", code="job_not_found")
    digest = (job.result or {}).get("router")
    if not isinstance(digest, str):
        raise InvalidRequest(f"{job_id} is {job.status} and has made no router.", param="router_job")
    return digest


def _newest_release_for(session: Session, base_fingerprint: str) -> ReleaseRow | None:
    query = select(ReleaseRow).where(ReleaseRow.base_fingerprint == base_fingerprint)
    return session.scalar(query.order_by(ReleaseRow.number.desc()).limit(1))


def _with_version(active: ReleaseRow | None, version_id: int, expert: str) -> list[int]:
    """The active release's versions, this one in the place of an earlier version of the same expert."""
    columns = active.experts if active else []
    ids = [version_id if column.version.expert_name == expert else column.version_id for column in columns]
    return ids if version_id in ids else [*ids, version_id]
