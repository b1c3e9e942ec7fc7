"""How a job's outcome joins what is served: the active release with one thing changed, as a new release.

Database work only, inside the transaction that ends the job. Activation compares with the release that was read, so a
change that somebody else activated meanwhile is never lost: it makes a Conflict, and the job reads again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.errors import Conflict
from services.shared.job_events import add_event
from services.shared.registry import active_release, create_release, set_evaluation
from services.shared.release_activation import REGRESSION, activate_release
from services.shared.release_evaluation import Evaluation
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
class Routing:
    """Who decides in a release, by digests: its router, its graph and its calibration, where there are any."""

    router: Router
    graph: str | None = None
    calibration: str | None = None

    @classmethod
    def of(cls, release: ReleaseRow) -> "Routing":
        """As a release has it."""
        router = Router(release.router_digest, RouterKind(release.router_kind))
        return cls(router, release.graph_digest, release.calibration_digest)


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

    Router, graph and calibration stay the active release's; `default_router` is asked when there is none.
    """
    active = active_release(session)
    current = current_release(session, base)
    # A dictionary keeps the place of what is replaced, which is its column.
    versions = {row.expert_name: row for row in versions_of(current)} | {version.expert_name: version}
    # A graph is over a fixed set of experts by name; a newcomer simply has no edges in it. And what tells known text
    # from unknown goes on with one expert more: it was learned on mixtures that differ by one.
    routing = Routing.of(current) if current else Routing(default_router())
    release = _create(session, list(versions.values()), base, routing, note=note)
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
    release = _create(session, versions, base, Routing(router, graph_digest), note=note)
    return _made(session, release, expected, activation)


def release_with_graph(
    session: Session, release: ReleaseRow, graph_digest: str, *, base: BaseIdentity, note: str
) -> ReleaseRow:
    """A staged release that differs from `release` in its graph alone."""
    return _create(session, versions_of(release), base, replace(Routing.of(release), graph=graph_digest), note=note)


def release_with_calibration(
    session: Session, release: ReleaseRow, calibration_digest: str, *, base: BaseIdentity, activate: bool, note: str
) -> Made:
    """A release that differs from `release` in its calibration alone, and is worth as much.

    It is activated only where `release` is the active one: it would take back what another has changed meanwhile.
    """
    routing = replace(Routing.of(release), calibration=calibration_digest)
    made = _create(session, versions_of(release), base, routing, note=note)
    if release.evaluation is not None:
        set_evaluation(session, made.number, Evaluation.model_validate(release.evaluation))
    if not activate:
        return Made(made, activated=False)
    if _expected(active_release(session)) != release.number:
        because = f"{release.id} is not the active release. POST /releases/{made.id}/activate does it all the same."
        return Made(made, activated=False, refusal=because)
    activate_release(session, made.number, expected_active=release.number)
    return Made(made, activated=True)


def versions_of(release: ReleaseRow | None) -> list[ExpertVersionRow]:
    """The expert versions of a release in the order of its gate's columns."""
    return [column.version for column in release.experts] if release is not None else []


def overtaken(release: ReleaseRow, beside: str) -> Made:
    """What was measured beside one release says nothing of this one, which was made of another."""
    refusal = (
        f"while it was compared with {beside}, another release became active. Evaluate it, then POST "
        f"/releases/{release.id}/activate."
    )
    return Made(release, activated=False, refusal=refusal)


def _expected(active: ReleaseRow | None) -> int | None:
    return active.number if active is not None else None


def _create(
    session: Session, versions: Sequence[ExpertVersionRow], base: BaseIdentity, routing: Routing, *, note: str
) -> ReleaseRow:
    return create_release(
        session,
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        router_digest=routing.router.digest,
        router_kind=routing.router.kind.value,
        graph_digest=routing.graph,
        version_ids=[version.id for version in versions],
        note=note,
        calibration_digest=routing.calibration,
    )


def _made(session: Session, release: ReleaseRow, active: int | None, activation: Activation | None) -> Made:
    """Activate it if that was asked for and the gate lets it through; Conflict if another became active meanwhile."""
    if activation is None:
        return Made(release, activated=False)
    judgement = activation.judgement
    if judgement is None:
        activate_release(session, release.number, expected_active=active)
        return Made(release, activated=True)
    if judgement.active != active:
        return overtaken(release, f"release-{judgement.active}")
    set_evaluation(session, release.number, judgement.evaluation)
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
