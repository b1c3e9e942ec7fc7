"""What is to be known of one gap, of the requests that belong to it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.shared.vocabulary import BASE, UNKNOWN
from services.trainer_worker.gap_analysis.clusters import on_sphere
from services.trainer_worker.gap_analysis.data_request import data_request
from services.trainer_worker.gap_analysis.losses import known_losses, measured_losses
from services.trainer_worker.gap_analysis.redaction import Redaction
from services.trainer_worker.gap_analysis.trend import trend_of
from services.trainer_worker.gap_analysis.window import Prompt, Window

_NUM_TYPICAL: Final = 10


@dataclass(frozen=True)
class Description:
    """The columns of a gap's row, but for those that it has from other gaps."""

    num_prompts: int
    trend: float
    domain: str
    release: str
    last_seen_at: datetime
    keywords: list[str]
    centroid_D: NDArray[np.float32]
    report: dict[str, Any]


@dataclass(frozen=True)
class Describer:
    """Describes the gaps of one window; `points_ND` are its flagged requests in their space."""

    window: Window
    points_ND: NDArray[np.float64]
    redaction: Redaction
    seed: int
    labels: Mapping[int, str] = field(default_factory=dict)
    """Domains that a teacher has named, by the places of flagged requests."""

    def describe(self, members: NDArray[np.int64], keywords: Sequence[str]) -> Description:
        """A gap of the flagged requests at these places."""
        prompts = [self.window.flagged[index] for index in members]
        trend = trend_of([prompt.at for prompt in prompts], since=self.window.since, until=self.window.until)
        guesses = [prompt.domain or UNKNOWN for prompt in prompts]
        named = [self.labels.get(index, guess) for index, guess in zip(members.tolist(), guesses, strict=True)]
        domain, share = _most_common(named)
        release, _ = _most_common([prompt.release for prompt in prompts])
        losses = measured_losses(prompts, seed=self.seed)
        known = known_losses(self.window.ordinary, seed=self.seed)
        above = _above(losses, known)
        typical = self.typical(members)
        report = {
            "window": {"since": self.window.since.isoformat(), "until": self.window.until.isoformat()},
            "trend": {
                "by_day": trend.by_day,
                "num_first_half": trend.num_first_half,
                "num_second_half": trend.num_second_half,
            },
            "domain": {"name": domain, "share": share, "by": "router" if named == guesses else "teacher"},
            "typical_prompts": typical or [],
            "prompts_are_kept": typical is not None,
            "losses": {**losses, "known_domains": known, "nats_above_known": above},
            "nearest_expert": _nearest_expert(prompts),
            "data_request": data_request(
                keywords=keywords, typical=typical, num_prompts=len(prompts), nats_above_known=above
            ),
        }
        states_MD = np.stack([prompt.states_D for prompt in prompts])
        return Description(
            num_prompts=len(prompts),
            trend=trend.ratio,
            domain=domain,
            release=release,
            last_seen_at=max(prompt.at for prompt in prompts),
            keywords=list(keywords),
            centroid_D=states_MD.mean(axis=0),
            report=report,
        )

    def typical(self, members: NDArray[np.int64]) -> list[str] | None:
        """The prompts nearest the middle, no two alike; None where none was kept."""
        middle_D = on_sphere(self.points_ND[members].mean(axis=0))
        nearest = members[np.argsort(-(self.points_ND[members] @ middle_D), kind="stable")]
        texts = [self.window.flagged[index].text for index in nearest]
        shown = [self.redaction.shown(text) for text in texts if text is not None]
        return list(dict.fromkeys(shown))[:_NUM_TYPICAL] if shown else None


def _most_common(values: Sequence[str]) -> tuple[str, float]:
    """The value that most have, the first by the alphabet of several, and the share of those that have it."""
    counts = Counter(values)
    value, num = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return value, num / len(values)


def _above(losses: Mapping[str, Any], known: Mapping[str, Any]) -> float | None:
    """Nats per token under the mixture beyond the mean over known domains."""
    of_known = [one["mixture"]["mean"] for one in known.values() if one["mixture"] is not None]
    if not of_known or losses["mixture"] is None:
        return None
    return float(losses["mixture"]["mean"] - fmean(of_known))


def _nearest_expert(prompts: Sequence[Prompt]) -> dict[str, Any] | None:
    """Who carried most of the answers beside the base model, and its mean share."""
    shares: Counter[str] = Counter()
    for prompt in prompts:
        for part in prompt.attribution:
            if part["expert"] != BASE:
                shares[part["expert"]] += part["share"] / len(prompts)
    if not shares or max(shares.values()) <= 0.0:
        return None
    expert, share = min(shares.items(), key=lambda item: (-item[1], item[0]))
    return {"expert": expert, "share": share}
