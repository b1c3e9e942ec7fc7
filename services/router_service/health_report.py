"""The system's report on itself: unused and unhealthy experts, load, uncertainty, and what to do about them. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean, pstdev
from typing import Any, Final, Literal

from services.router_service.measured_losses import MeasuredLoss
from services.router_service.schemas.health_report import (
    ExpertHealth,
    HealthReport,
    Problem,
    ReportWindow,
    Suggestion,
    Uncertainty,
)
from services.router_service.usage import Spoken, Usage
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import BASE, JobKind, RouterKind

UNSURE_BELOW: Final = 0.5
"""Confidence of a release without calibration under which a request counts as uncertain."""
_IMBALANCE: Final = 1.5
_UNCERTAINTY: Final = 0.4
"""The requirements' bounds: above them the router should be trained, and gaps be looked for."""
_FEWEST_REQUESTS: Final = 50
"""As few say nothing of who is used (the requirements' number)."""


@dataclass(frozen=True)
class Subject:
    """What the report is about: the active release, if there is one, and what is registered beside it."""

    release: str | None
    experts: Sequence[ExpertRef]
    registered: Mapping[str, ExpertRef]
    router_kind: RouterKind = RouterKind.BAYES
    is_calibrated: bool = False
    missing: Collection[str] = ()
    """Digests whose artifacts are not in storage."""
    losses: Mapping[str, MeasuredLoss] = field(default_factory=dict)
    flagged_band: tuple[float, float] = (0.0, 1.0)


def make_report(subject: Subject, usage: Usage, *, since: datetime, until: datetime, max_requests: int) -> HealthReport:
    """What is known of the subject, from a window's usage."""
    experts = [_expert(ref, subject, usage, in_release=True) for ref in subject.experts]
    speaking = {ref.name for ref in subject.experts}
    others = [ref for name, ref in sorted(subject.registered.items()) if name not in speaking]
    experts.sort(key=lambda expert: -expert.token_share)
    imbalance = _imbalance([expert.token_share for expert in experts])
    experts += [_expert(ref, subject, usage, in_release=False) for ref in others]
    uncertainty = _uncertainty(usage, subject.flagged_band)
    return HealthReport(
        window=ReportWindow(
            since=since,
            until=until,
            num_requests=usage.num_requests,
            num_failed=usage.num_failed,
            num_generated_tokens=usage.num_tokens,
            complete=usage.num_requests < max_requests,
        ),
        release=subject.release,
        experts=experts,
        unused=[expert.name for expert in experts if Problem.UNUSED in expert.problems],
        unhealthy=[expert.name for expert in experts if set(expert.problems) - {Problem.UNUSED}],
        base_share=_share(usage.spoken.get(BASE), usage) if usage.num_tokens else None,
        load_imbalance=imbalance,
        uncertainty=uncertainty,
        suggestions=_suggestions(subject, usage, experts, imbalance, uncertainty),
    )


def _expert(ref: ExpertRef, subject: Subject, usage: Usage, *, in_release: bool) -> ExpertHealth:
    spoken, failed = usage.spoken.get(ref.name), usage.failed.get(ref.name)
    measured = subject.losses.get(ref.name) if in_release else None
    # One that has spoken since was put right.
    fails = failed is not None and (spoken is None or spoken.last_at < failed.last_at)
    found = {
        Problem.UNUSED: spoken is None,
        Problem.NOT_IN_STORAGE: ref.digest in subject.missing,
        Problem.FAILS: fails,
        Problem.WORSE_THAN_BASE: measured is not None and measured.is_worse,
    }
    return ExpertHealth(
        name=ref.name,
        version=ref.version,
        in_release=in_release,
        num_requests=spoken.num_requests if spoken else 0,
        token_share=_share(spoken, usage),
        num_failed=failed.num_requests if failed else 0,
        loss=measured.routed if measured else None,
        base_loss=measured.base if measured else None,
        problems=[problem for problem, is_so in found.items() if is_so],
    )


def _share(spoken: Spoken | None, usage: Usage) -> float:
    return spoken.num_tokens / usage.num_tokens if spoken and usage.num_tokens else 0.0


def _imbalance(shares: Sequence[float]) -> float | None:
    """Standard deviation over mean; None where nobody spoke."""
    mean = fmean(shares) if shares else 0.0
    return pstdev(shares) / mean if mean > 0.0 else None


def _uncertainty(usage: Usage, band: tuple[float, float]) -> Uncertainty:
    if usage.num_judged:
        rate = usage.num_flagged / usage.num_judged
        drift = _drift(rate, band) if usage.num_judged >= _FEWEST_REQUESTS else None
        return Uncertainty(
            rate=rate, num_judged=usage.num_judged, basis="flagged", threshold=None, band=band, drift=drift
        )
    return Uncertainty(
        rate=usage.num_unsure / usage.num_confident if usage.num_confident else None,
        num_judged=usage.num_confident,
        basis="confidence",
        threshold=UNSURE_BELOW,
        band=band,
        drift=None,
    )


def _drift(rate: float, band: tuple[float, float]) -> Literal["below", "above"] | None:
    low, high = band
    return "below" if rate < low else "above" if rate > high else None


def _suggestions(
    subject: Subject,
    usage: Usage,
    experts: Sequence[ExpertHealth],
    imbalance: float | None,
    uncertainty: Uncertainty,
) -> list[Suggestion]:
    """What a window of few requests says is not acted on."""
    if subject.release is None:
        return []
    made = [_retrained(expert) for expert in experts if set(expert.problems) - {Problem.UNUSED}]
    if not subject.is_calibrated:
        reason = "The release has no calibration: nothing tells requests that it does not know."
        made.append(_suggestion(reason, JobKind.CALIBRATION, {"release": subject.release}, "held_out"))
    if usage.num_requests < _FEWEST_REQUESTS:
        return made
    if imbalance is not None and imbalance > _IMBALANCE:
        reason = f"The load imbalance of {imbalance:.2f} is above {_IMBALANCE}: few experts do most of the work."
        spec = {"router": subject.router_kind.value, "experts": [ref.name for ref in subject.experts]}
        needed = ["training_files"] if subject.router_kind is RouterKind.LEARNED else []
        made.append(_suggestion(reason, JobKind.ROUTER, spec, *needed))
    if uncertainty.rate is not None and uncertainty.rate > _UNCERTAINTY:
        reason = f"{uncertainty.rate:.0%} of the requests are uncertain: what they have in common may want an expert."
        made.append(_suggestion(reason, JobKind.GAP_ANALYSIS, {}))
    if uncertainty.drift is not None:
        reason = (
            f"{uncertainty.rate:.1%} of the requests are flagged, {uncertainty.drift} the band of "
            f"{uncertainty.band[0]:.0%} to {uncertainty.band[1]:.0%}: on text of today a calibration may flag others."
        )
        made.append(_suggestion(reason, JobKind.CALIBRATION, {"release": subject.release}, "held_out"))
    unused = [expert.name for expert in experts if expert.in_release and expert.problems == [Problem.UNUSED]]
    if unused:
        reason = f"{', '.join(unused)}: in the release without having spoken. An evaluation tells what they are worth."
        made.append(_suggestion(reason, JobKind.EVALUATION, {"release": subject.release}, "held_out"))
    return made


def _retrained(expert: ExpertHealth) -> Suggestion:
    problems = ", ".join(problem.replace("_", " ") for problem in expert.problems)
    spec = {"name": expert.name, "add_to_release": expert.in_release}
    return _suggestion(f"{expert.name}: {problems}. Train it anew.", JobKind.EXPERT, spec, "training_file")


def _suggestion(reason: str, kind: JobKind, spec: Mapping[str, Any], *fill_in: str) -> Suggestion:
    return Suggestion(reason=reason, kind=kind, spec={"kind": kind.value, **spec}, fill_in=list(fill_in))
