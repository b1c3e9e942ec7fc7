"""Which release is active: by compare-and-set, behind a gate against regressions, and back again in one call.

Every function works inside the caller's transaction. The change is one statement under a unique index that allows one
active release, so two processes can never both succeed.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.shared.database.rows import ExpertRow, ReleaseActivationRow, ReleaseRow
from services.shared.errors import Conflict
from services.shared.registry import find_release
from services.shared.release_evaluation import Evaluation, LossChange, loss_changes, stored_evaluation
from services.shared.vocabulary import VersionStatus


class Unset(Enum):
    """The type of a value that was not given, where None means something."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET
REGRESSION: Final = "release_regression"
"""The code of the Conflict with which the gate against regressions refuses."""
_ACTIVATION_ATTEMPTS: Final = 10
_MAX_NAMED: Final = 5

_ACTIVATE = text(
    """
    WITH demoted AS (
        UPDATE releases SET status = 'retired'
        WHERE status = 'active' AND number <> :number
          AND (NOT CAST(:compare AS boolean) OR number = CAST(:expected AS integer))
        RETURNING number
    )
    UPDATE releases SET status = 'active', activated_at = now()
    WHERE number = :number AND (SELECT count(*) FROM demoted) >= :num_to_demote
    RETURNING number
    """
)
"""One statement: the old release steps down and the new one up, or neither. Reading `demoted` in the condition makes
the first half run first; the unique index refuses a second active release that another process put there meanwhile."""


def activate_release(
    session: Session,
    number: int,
    *,
    expected_active: int | Unset | None = UNSET,
    tolerance: float | None = None,
    reference: Evaluation | None = None,
) -> ReleaseRow:
    """Make release `number` the active one, if the active one is `expected_active` (None: if none is).

    Conflict when it is another, saying which; activating the active release again changes nothing. With a `tolerance`
    in nats per token, Conflict also where both were evaluated and this one is worse in a domain by more than that;
    `reference` are the active release's losses where they are not those in its row.
    """
    release = find_release(session, number)
    was_active = _make_active(session, release, expected_active, tolerance, reference)
    if not was_active:
        session.add(ReleaseActivationRow(release_number=number))
        session.flush()
    return release


def rollback_release(session: Session, *, expected_active: int | Unset | None = UNSET) -> ReleaseRow:
    """Make the release active that was so before the active one, whatever their evaluations say; again: one further.

    Conflict when the active release is not `expected_active`, or when there was none before it.
    """
    active = _active_number(session)
    if expected_active is not UNSET and active != expected_active:
        raise _not_as_expected(expected_active, active)
    latest, before = _latest_activations(session)
    if latest is None or before is None or latest.release_number != active:
        raise Conflict(
            "No release was active before this one: there is nothing to go back to. GET /releases lists those that "
            "POST /releases/{id}/activate can make active.",
            param="release",
            code="no_earlier_release",
        )
    release = find_release(session, before.release_number)
    _make_active(session, release, active)
    latest.undone_at = func.clock_timestamp()
    session.flush()
    return release


def release_before(session: Session) -> tuple[int | None, int | None]:
    """The number of the active release, and of the one that a rollback would lead to."""
    _, before = _latest_activations(session)
    return _active_number(session), before.release_number if before is not None else None


def _latest_activations(session: Session) -> Sequence[ReleaseActivationRow | None]:
    """The activation that made the active release so and the one before it, without those that were taken back."""
    query = select(ReleaseActivationRow).where(ReleaseActivationRow.undone_at.is_(None))
    found = list(session.scalars(query.order_by(ReleaseActivationRow.id.desc()).limit(2)))
    return [*found, None, None][:2]


def _make_active(
    session: Session,
    release: ReleaseRow,
    expected_active: int | Unset | None,
    tolerance: float | None = None,
    reference: Evaluation | None = None,
) -> bool:
    """Whether it was active already; it is now."""
    _hold_experts_in_use(session, release)
    for _ in range(_ACTIVATION_ATTEMPTS):
        active = _active_number(session)
        if expected_active is not UNSET and active != expected_active:
            raise _not_as_expected(expected_active, active)
        if active == release.number:
            return True
        if tolerance is not None:
            _refuse_regression(session, release, active, tolerance, reference)
        # Compared with one release, it may replace only that one.
        replaced = active if tolerance is not None else expected_active
        if _swap_active(session, release.number, replaced):
            session.refresh(release, ["status", "activated_at"])
            return False
    raise Conflict(
        f"Other activations kept coming in between: {release.id} is not active. Try again.",
        param="release",
        code="release_conflict",
    )


def _refuse_regression(
    session: Session, release: ReleaseRow, active: int | None, tolerance: float, reference: Evaluation | None
) -> None:
    if reference is None:
        # The column alone: a row loaded earlier would be stale.
        stored = session.scalar(select(ReleaseRow.evaluation).where(ReleaseRow.number == active))
        reference = stored_evaluation(stored)
    changes = loss_changes(reference, stored_evaluation(release.evaluation))
    worse = [change for change in changes if change.is_regression(tolerance)]
    if worse:
        raise Conflict(
            f"{release.id} is worse than the active release-{active} in {_told(worse)}; {tolerance:g} nats per token "
            "are tolerated. Improve it, or activate it with force: true.",
            param="release",
            code=REGRESSION,
        )


def _told(worse: Sequence[LossChange]) -> str:
    """The worst domains first, with their figures."""
    ordered = sorted(worse, key=lambda change: -change.difference)
    named = [f"{change.domain} ({change.after:.4f} instead of {change.before:.4f})" for change in ordered[:_MAX_NAMED]]
    more = len(ordered) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _swap_active(session: Session, number: int, expected: int | Unset | None) -> bool:
    parameters = {
        "number": number,
        "compare": expected is not UNSET,
        "expected": expected if isinstance(expected, int) else None,
        "num_to_demote": 1 if isinstance(expected, int) else 0,
    }
    try:
        with session.begin_nested():
            return session.execute(_ACTIVATE, parameters).first() is not None
    except IntegrityError:
        return False


def _hold_experts_in_use(session: Session, release: ReleaseRow) -> None:
    names = [column.version.expert_name for column in release.experts]
    # Held until commit, so that none of them can be retired meanwhile; columns, because loaded rows would be stale.
    held = select(ExpertRow.name, ExpertRow.retired_at).where(ExpertRow.name.in_(names)).order_by(ExpertRow.name)
    retired = [name for name, at in session.execute(held.with_for_update(read=True)) if at is not None]
    if retired:
        raise Conflict(
            f"{release.id} holds retired experts ({', '.join(retired)}): "
            "register them again or make a release without them.",
            param="release",
            code="expert_retired",
        )


def _active_number(session: Session) -> int | None:
    return session.scalar(select(ReleaseRow.number).where(ReleaseRow.status == VersionStatus.ACTIVE))


def _not_as_expected(expected: int | Unset | None, active: int | None) -> Conflict:
    def named(number: object) -> str:
        return "none" if number is None else f"release-{number}"

    return Conflict(
        f"The active release is {named(active)}, not {named(expected)} as expected: look at it, then try again.",
        param="if_active",
        code="release_conflict",
    )
