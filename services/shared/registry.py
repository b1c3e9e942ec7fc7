"""Experts, their versions, and releases: what is registered (DESIGN D5).

Every function works inside the caller's transaction. Which release is active is `release_activation`'s to change.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, Literal

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session, joinedload, selectinload

from services.shared.database.rows import ExpertRow, ExpertVersionRow, ReleaseExpertRow, ReleaseRow
from services.shared.errors import Conflict, InvalidRequest, NotFound
from services.shared.release_evaluation import Evaluation
from services.shared.schemas.job_spec import refuse_reserved
from services.shared.schemas.sequences import AdapterReport
from services.shared.vocabulary import BASE, MAX_NAME_LENGTH, VersionStatus

_MAX_RELEASE_NUMBER: Final = 2**31 - 1


def register_expert(  # noqa: PLR0913
    session: Session,
    *,
    name: str,
    domain: str | None,
    description: str,
    digest: str,
    report: AdapterReport,
    has_evidence: bool,
    source: Literal["imported", "trained"],
    job_id: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    must_be_new: bool = False,
) -> ExpertVersionRow:
    """Add the next version of expert `name`; makes the expert if there is none and un-retires one that was retired.

    Conflict for a name that an expert has and that `must_be_new`.
    """
    refuse_reserved(name, domain)
    _hold_expert(session, name=name, domain=domain, description=description)
    latest = session.scalar(select(func.max(ExpertVersionRow.version)).where(ExpertVersionRow.expert_name == name))
    if must_be_new and latest is not None:
        raise Conflict(
            f"There is an expert {name!r} by now: choose another name; an expert's own makes a new version of it.",
            param="name",
            code="name_taken",
        )
    version = ExpertVersionRow(
        expert_name=name,
        version=(latest or 0) + 1,
        digest=digest,
        base_fingerprint=report.base_fingerprint,
        rank=report.rank,
        num_parameters=report.num_parameters,
        num_bytes=report.num_bytes,
        has_evidence=has_evidence,
        source=source,
        job_id=job_id,
        metrics=dict(metrics or {}),
    )
    session.add(version)
    session.flush()
    return version


def _hold_expert(session: Session, *, name: str, domain: str | None, description: str) -> None:
    # The upsert locks the expert's row, so that two writers cannot take the same version number.
    upsert = insert(ExpertRow).values(name=name, domain=domain, description=description)
    session.execute(
        upsert.on_conflict_do_update(
            index_elements=[ExpertRow.name],
            set_={
                "retired_at": None,
                "domain": func.coalesce(upsert.excluded.domain, ExpertRow.domain),
                "description": func.coalesce(func.nullif(upsert.excluded.description, ""), ExpertRow.description),
            },
        )
    )


def retire_expert(session: Session, name: str) -> None:
    """Take `name` out of use; Conflict while the active release needs it. Its versions stay for the record."""
    held = select(ExpertRow).where(ExpertRow.name == name).with_for_update()
    row = session.scalar(held.execution_options(populate_existing=True))
    if row is None:
        raise unknown_expert(name, session.scalars(select(ExpertRow.name)).all())
    release = active_release(session)
    if release is not None and name in {column.version.expert_name for column in release.experts}:
        raise Conflict(
            f"Expert {name!r} speaks in the active {release.id}: activate a release without it first "
            "(POST /releases, then POST /releases/{id}/activate).",
            param="name",
            code="expert_in_use",
        )
    row.pinned_at = None
    if row.retired_at is None:
        row.retired_at = datetime.now(UTC)
    session.flush()


def set_pinned(session: Session, name: str, *, pinned: bool) -> None:
    """Remember whether `name` stays in a slot on every replica; NotFound, or Conflict when it is retired."""
    row = find_expert_in_use(session, name) if pinned else find_expert(session, name)
    row.pinned_at = (row.pinned_at or datetime.now(UTC)) if pinned else None
    session.flush()


def find_expert_in_use(session: Session, name: str) -> ExpertRow:
    """The expert with its versions, unless it is retired."""
    row = find_expert(session, name)
    if row.retired_at is not None:
        raise Conflict(f"Expert {name!r} is retired: register it again to use it.", param="name", code="expert_retired")
    return row


def find_expert(session: Session, name: str) -> ExpertRow:
    """The expert with its versions, oldest first; NotFound names close matches."""
    row = session.scalar(select(ExpertRow).where(ExpertRow.name == name).options(selectinload(ExpertRow.versions)))
    if row is None:
        raise unknown_expert(name, session.scalars(select(ExpertRow.name)).all())
    return row


def unknown_expert(name: str, known: Sequence[str]) -> NotFound:
    """The error for a name that is not registered, with the names that the caller may have meant."""
    close = get_close_matches(name[:MAX_NAME_LENGTH], [*known, BASE], n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "GET /experts lists those that are."
    return NotFound(f"No expert {name[:80]!r} is registered. {hint}", param="adapter_id", code="expert_not_found")


def latest_versions(session: Session, names: Sequence[str] | None = None) -> list[ExpertVersionRow]:
    """The newest version of each expert in use, by name; with `names`, of those, in that order, or NotFound."""
    newest = (
        select(ExpertVersionRow)
        .join(ExpertRow)
        .where(ExpertRow.retired_at.is_(None))
        .ext(distinct_on(ExpertVersionRow.expert_name))
        .order_by(ExpertVersionRow.expert_name, ExpertVersionRow.version.desc())
        .options(joinedload(ExpertVersionRow.expert))
    )
    if names is not None:
        newest = newest.where(ExpertRow.name.in_(names))
    by_name = {row.expert_name: row for row in session.scalars(newest)}
    if names is None:
        return list(by_name.values())
    for name in names:
        if name not in by_name:
            raise unknown_expert(
                name, session.scalars(select(ExpertRow.name).where(ExpertRow.retired_at.is_(None))).all()
            )
    return [by_name[name] for name in names]


def find_version(session: Session, name: str, version: int | None) -> ExpertVersionRow:
    """Version `version` of an expert in use, or its newest; NotFound says which there are."""
    if version is None:
        return latest_versions(session, [name])[0]
    expert = find_expert(session, name)
    if expert.retired_at is not None:
        raise Conflict(f"Expert {name!r} is retired: register it again to use it.", param="experts")
    for row in expert.versions:
        if row.version == version:
            return row
    there = ", ".join(str(row.version) for row in expert.versions)
    raise NotFound(f"Expert {name!r} has no version {version}: there are {there}.", param="experts")


def active_release(session: Session) -> ReleaseRow | None:
    """The release that new requests run on, with its experts loaded."""
    return session.scalar(_releases().where(ReleaseRow.status == VersionStatus.ACTIVE))


def find_release(session: Session, number: int) -> ReleaseRow:
    """The release with its experts loaded, or NotFound."""
    known = 0 < number <= _MAX_RELEASE_NUMBER
    row = session.scalar(_releases().where(ReleaseRow.number == number)) if known else None
    if row is None:
        raise NotFound(f"No release-{number}. GET /releases lists them.", param="release", code="release_not_found")
    return row


def list_releases(session: Session, *, before: int | None, limit: int) -> list[ReleaseRow]:
    """Newest first, those older than number `before` if given."""
    query = _releases().order_by(ReleaseRow.number.desc()).limit(limit)
    if before is not None:
        query = query.where(ReleaseRow.number < before)
    return list(session.scalars(query))


def create_release(  # noqa: PLR0913
    session: Session,
    *,
    base_model: str,
    base_fingerprint: str,
    router_digest: str,
    router_kind: str,
    graph_digest: str | None,
    version_ids: Sequence[int],
    note: str,
    evaluation: Evaluation | None = None,
    calibration_digest: str | None = None,
) -> ReleaseRow:
    """A staged release; `version_ids` are its gate's columns in order, one version per expert, all for one base."""
    versions = _versions_of_one_base(session, version_ids, base_fingerprint)
    release = ReleaseRow(
        base_model=base_model,
        base_fingerprint=base_fingerprint,
        router_digest=router_digest,
        router_kind=router_kind,
        graph_digest=graph_digest,
        calibration_digest=calibration_digest,
        status=VersionStatus.STAGED,
        note=note,
        evaluation=evaluation.model_dump() if evaluation is not None else None,
    )
    session.add(release)
    session.flush()
    if versions:
        columns = [
            {"release_number": release.number, "position": position, "version_id": version.id}
            for position, version in enumerate(versions)
        ]
        session.execute(insert(ReleaseExpertRow), columns)
    return find_release(session, release.number)


def set_evaluation(session: Session, number: int, evaluation: Evaluation) -> ReleaseRow:
    """Remember how good a release is; what it serves stays as it is."""
    release = find_release(session, number)
    release.evaluation = evaluation.model_dump()
    session.flush()
    return release


def _versions_of_one_base(
    session: Session, version_ids: Sequence[int], base_fingerprint: str
) -> list[ExpertVersionRow]:
    found = session.scalars(select(ExpertVersionRow).where(ExpertVersionRow.id.in_(version_ids)))
    by_id = {row.id: row for row in found}
    missing = [str(number) for number in version_ids if number not in by_id]
    if missing:
        raise NotFound(f"No expert version with id {', '.join(missing)}.", param="experts")
    versions = [by_id[number] for number in version_ids]
    counts = Counter(version.expert_name for version in versions)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise InvalidRequest(
            f"A release takes one version per expert; twice named: {', '.join(twice)}.", param="experts"
        )
    for version in versions:
        if version.base_fingerprint != base_fingerprint:
            raise Conflict(
                f"Expert {version.expert_name!r} version {version.version} was made for another base model "
                f"({version.base_fingerprint[:12]}… instead of {base_fingerprint[:12]}…): "
                "train or import it for this one.",
                param="experts",
                code="base_model_mismatch",
            )
    return versions


def _releases() -> Select[ReleaseRow]:
    columns = selectinload(ReleaseRow.experts).joinedload(ReleaseExpertRow.version)
    return select(ReleaseRow).options(columns.joinedload(ExpertVersionRow.expert))
