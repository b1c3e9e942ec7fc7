"""How a job's outcome joins what is served: the active release with one thing changed, as a new release.

Database work only, inside the transaction that ends the job. Activation compares with the release that was read, so a
change that somebody else activated meanwhile is never lost: it makes a Conflict, and the job reads again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.registry import active_release, create_release
from services.shared.release_activation import activate_release
from services.shared.vocabulary import RouterKind


@dataclass(frozen=True)
class BaseIdentity:
    """The base model that a release is for."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Router:
    """A published router."""

    digest: str
    kind: RouterKind


def current_release(session: Session, base: BaseIdentity) -> ReleaseRow | None:
    """The active release, if it is for this base model."""
    active = active_release(session)
    return active if active is not None and active.base_fingerprint == base.fingerprint else None


def join_release(
    session: Session,
    version: ExpertVersionRow,
    *,
    base: BaseIdentity,
    default_router: Callable[[], Router],
    activate: bool,
    note: str,
) -> ReleaseRow:
    """A release with the experts of the active one and `version`, which replaces an earlier version of the same expert.

    Router and graph stay the active release's; `default_router` is asked when there is none.
    """
    active = active_release(session)
    current = current_release(session, base)
    kept = versions_of(current)
    names = [row.expert_name for row in kept]
    if version.expert_name in names:
        kept[names.index(version.expert_name)] = version
    else:
        kept.append(version)
    router = Router(current.router_digest, RouterKind(current.router_kind)) if current else default_router()
    # A graph is over a fixed set of experts by name; a newcomer simply has no edges in it.
    graph_digest = current.graph_digest if current else None
    return _create(session, kept, base, router, graph_digest, _expected(active), activate=activate, note=note)


def release_with_router(
    session: Session,
    router: Router,
    versions: Sequence[ExpertVersionRow],
    *,
    base: BaseIdentity,
    activate: bool,
    note: str,
) -> ReleaseRow:
    """A release of `versions` under a new router; the active release's graph stays."""
    current = current_release(session, base)
    graph_digest = current.graph_digest if current else None
    expected = _expected(active_release(session))
    return _create(session, versions, base, router, graph_digest, expected, activate=activate, note=note)


def release_with_graph(
    session: Session, release: ReleaseRow, graph_digest: str, *, base: BaseIdentity, note: str
) -> ReleaseRow:
    """A staged release that differs from `release` in its graph alone."""
    router = Router(release.router_digest, RouterKind(release.router_kind))
    return _create(session, versions_of(release), base, router, graph_digest, None, activate=False, note=note)


def versions_of(release: ReleaseRow | None) -> list[ExpertVersionRow]:
    """The expert versions of a release in the order of its gate's columns."""
    return [column.version for column in release.experts] if release is not None else []


def _expected(active: ReleaseRow | None) -> int | None:
    return active.number if active is not None else None


def _create(  # noqa: PLR0913
    session: Session,
    versions: Sequence[ExpertVersionRow],
    base: BaseIdentity,
    router: Router,
    graph_digest: str | None,
    expected_active: int | None,
    *,
    activate: bool,
    note: str,
) -> ReleaseRow:
    release = create_release(
        session,
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        router_digest=router.digest,
        router_kind=router.kind.value,
        graph_digest=graph_digest,
        version_ids=[version.id for version in versions],
        note=note,
    )
    if activate:
        activate_release(session, release.number, expected_active=expected_active)
    return release
