"""What differs between two releases: experts and router by digest, settings and figures by value."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from services.router_service.schemas.comparison import (
    Change,
    EvaluationChange,
    ExpertChange,
    ExpertChanges,
    FigureChange,
    ReleaseComparison,
    RouterChange,
)
from services.router_service.schemas.registry import ReleaseExpert
from services.shared.database.rows import ExpertVersionRow, ReleaseRow
from services.shared.errors import AmoeError
from services.shared.modeling.router_artifact import read_router_file
from services.shared.release_evaluation import loss_changes, stored_evaluation
from services.shared.storage import Storage


def compare_releases(a: ReleaseRow, b: ReleaseRow, *, storage: Storage, tolerance: float) -> ReleaseComparison:
    """The differences from `a` to `b`; reads the routers' settings from storage."""
    digests = Change[str](a=a.content.digest, b=b.content.digest)
    return ReleaseComparison(
        a=a.id,
        b=b.id,
        digest=digests,
        same_content=digests.a == digests.b,
        base_fingerprint=_change(a.base_fingerprint, b.base_fingerprint),
        experts=_experts(a, b),
        router=_router(a, b, storage),
        graph=_change(a.graph_digest, b.graph_digest),
        calibration=_change(a.calibration_digest, b.calibration_digest),
        evaluation=_evaluation(a, b, tolerance),
    )


def released_expert(version: ExpertVersionRow) -> ReleaseExpert:
    """A column as the API tells it."""
    return ReleaseExpert(name=version.expert_name, version=version.version, digest=version.digest)


def _change(a: Any, b: Any) -> Change[Any] | None:
    return None if a == b else Change(a=a, b=b)


def _experts(a: ReleaseRow, b: ReleaseRow) -> ExpertChanges:
    before = {column.version.expert_name: column.version for column in a.experts}
    after = {column.version.expert_name: column.version for column in b.experts}
    common = [name for name in before if name in after]
    changed = [name for name in common if before[name].digest != after[name].digest]
    return ExpertChanges(
        added=[released_expert(version) for name, version in after.items() if name not in before],
        removed=[released_expert(version) for name, version in before.items() if name not in after],
        changed=[_expert_change(before[name], after[name]) for name in changed],
        unchanged=[name for name in common if name not in changed],
        reordered=common != [name for name in after if name in before],
    )


def _expert_change(a: ExpertVersionRow, b: ExpertVersionRow) -> ExpertChange:
    metrics = {
        name: _figures(float(value), float(b.metrics[name]))
        for name, value in a.metrics.items()
        if _is_figure(value) and _is_figure(b.metrics.get(name))
    }
    return ExpertChange(name=a.expert_name, a=released_expert(a), b=released_expert(b), metrics=metrics)


def _is_figure(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _figures(a: float, b: float) -> FigureChange:
    return FigureChange(a=a, b=b, difference=b - a)


def _router(a: ReleaseRow, b: ReleaseRow, storage: Storage) -> RouterChange | None:
    digests = _change(a.router_digest, b.router_digest)
    if digests is None:
        return None
    before, after = _router_settings(a, storage), _router_settings(b, storage)
    settings = None
    if before is not None and after is not None:
        changes = {name: _change(before[name], after[name]) for name in before}
        settings = {name: change for name, change in changes.items() if change is not None}
    return RouterChange(digest=digests, settings=settings)


def _router_settings(release: ReleaseRow, storage: Storage) -> Mapping[str, Any] | None:
    try:
        return read_router_file(storage.artifact(release.router_digest)).model_dump(mode="json")
    except AmoeError:
        return None


def _evaluation(a: ReleaseRow, b: ReleaseRow, tolerance: float) -> EvaluationChange | None:
    changes = loss_changes(stored_evaluation(a.evaluation), stored_evaluation(b.evaluation))
    if not changes:
        return None
    return EvaluationChange(
        domains={change.domain: _figures(change.before, change.after) for change in changes},
        regressions=[change.domain for change in changes if change.is_regression(tolerance)],
        tolerance=tolerance,
    )
