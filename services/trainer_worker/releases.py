"""How a job's outcome joins what is served: the active release with one thing changed, as a new release.

Database work only, inside the transaction that ends the job. Activation compares with the release that was read, so a
change that somebody else activated meanwhile is never lost: it makes a Conflict, and the job reads again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.errors import Conflict
from services.shared.job_events import add_event
from services.shared.registry import active_release, create_release, set_evaluation
from services.shared.release_activation import REGRESSION, activate_release
from services.shared.vocabulary import RouterKind
from services.trainer_worker.activation_gate import Judgement


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


@dataclass(frozen=True)
class Activation:
    """That a job's release is to be activated, unless it is worse than the active one by more than `tolerance` nats per
    token in a domain; without a judgement there is nothing to compare."""

    tolerance: float
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Made:
    """A job's release, and why it is not active although it was to be."""

    release: ReleaseRow
    activated: bool
    refusal: str | None = None

    def told(self, session: Session, job_id: str) -> dict[str, Any]:
        """What the job's result says of it; a refusal becomes an event too."""
        told: dict[str, Any] = {"release": self.release.id, "activated": self.activated}
        if self.refusal is None:
            return told
        add_event(session, job_id, f"{self.release.id} is made but not active: {self.refusal}", level="warn")
        return told | {"not_activated_because": self.refusal}


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
    activation: Activation | None,
    note: str,
) -> Made:
    """A release with the experts of the active one and `version`, which replaces an earlier version of the same expert.

    Router and graph stay the active release's; `default_router` is asked when there is none.
    """
    active = active_release(session)
    current = current_release(session, base)
    # A dictionary keeps the place of what is replaced, which is its column.
    versions = {row.expert_name: row for row in versions_of(current)} | {version.expert_name: version}
    router = Router(current.router_digest, RouterKind(current.router_kind)) if current else default_router()
    # A graph is over a fixed set of experts by name; a newcomer simply has no edges in it.
    graph_digest = current.graph_digest if current else None
    release = _create(session, list(versions.values()), base, router, graph_digest, note=note)
    return _made(session, release, _expected(active), activation)


def release_with_router(
    session: Session,
    router: Router,
    versions: Sequence[ExpertVersionRow],
    *,
    base: BaseIdentity,
    activation: Activation | None,
    note: str,
) -> Made:
    """A release of `versions` under a new router; the active release's graph stays."""
    current = current_release(session, base)
    graph_digest = current.graph_digest if current else None
    expected = _expected(active_release(session))
    release = _create(session, versions, base, router, graph_digest, note=note)
    return _made(session, release, expected, activation)


def release_with_graph(
    session: Session, release: ReleaseRow, graph_digest: str, *, base: BaseIdentity, note: str
) -> ReleaseRow:
    """A staged release that differs from `release` in its graph alone."""
    router = Router(release.router_digest, RouterKind(release.router_kind))
    return _create(session, versions_of(release), base, router, graph_digest, note=note)


def versions_of(release: ReleaseRow | None) -> list[ExpertVersionRow]:
    """The expert versions of a release in the order of its gate's columns."""
    return [column.version for column in release.experts] if release is not None else []


def _expected(active: ReleaseRow | None) -> int | None:
    return active.number if active is not None else None


def _create(
    session: Session,
    versions: Sequence[ExpertVersionRow],
    base: BaseIdentity,
    router: Router,
    graph_digest: str | None,
    *,
    note: str,
) -> ReleaseRow:
    return create_release(
        session,
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        router_digest=router.digest,
        router_kind=router.kind.value,
        graph_digest=graph_digest,
        version_ids=[version.id for version in versions],
        note=note,
    )


def _made(session: Session, release: ReleaseRow, active: int | None, activation: Activation | None) -> Made:
    """Activate it if that was asked for and the gate lets it through; Conflict if another became active meanwhile."""
    if activation is None:
        return Made(release, activated=False)
    judgement = activation.judgement
    if judgement is None:
        activate_release(session, release.number, expected_active=active)
        return Made(release, activated=True)
    set_evaluation(session, release.number, judgement.evaluation)
    if judgement.active != active:
        return Made(
            release,
            activated=False,
            refusal=f"while it was compared with release-{judgement.active}, another release became active. Evaluate "
            f"it, then POST /releases/{release.id}/activate.",
        )
    try:
        activate_release(
            session,
            release.number,
            expected_active=active,
            tolerance=activation.tolerance,
            reference=judgement.reference,
        )
    except Conflict as error:
        if error.error_code != REGRESSION:
            raise
        return Made(release, activated=False, refusal=error.message)
    return Made(release, activated=True)
