"""Readings of a release, as figures: plain values that reports and pictures are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from services.shared.modeling.bayes_filter import BayesFilter
from services.shared.modeling.column_scores import BayesScores
from services.shared.modeling.gating import Gate
from services.trainer_worker.evaluation.figures import (
    Interval,
    Totals,
    compare,
    difference,
    domain_losses,
    experts_per_token,
    over_seeds_interval,
    resamples,
    token_accuracy,
    totals,
)
from services.trainer_worker.evaluation.routing_statistics import calibration, utilisation
from services.trainer_worker.evaluation.systems import Readings
from services.trainer_worker.evaluation.windows import Windows

ROUTED: Final = "routed"
BASE_ALONE: Final = "base"
UNIFORM: Final = "uniform mixture"
ORACLE: Final = "oracle"
AS_RELEASED: Final = "as released"
FIRST_TOKENS: Final = 16
"""So many predicted tokens a router needs at most to know whose text it reads; an oracle knows before the first."""
_AROUND_SWITCH: Final = (-16, 48)

Figures = dict[str, Any]


@dataclass(frozen=True)
class PartReadings:
    """One set of documents, the router's scores_BTC on it, and what every system made of it."""

    windows: Windows
    scores_BTC: np.ndarray
    systems: Mapping[str, Readings]

    def totals(self, *, by_domain: bool, after_switch: bool = False, skip: int = 0) -> dict[str, Totals]:
        """Of all systems."""
        return {
            name: totals(one, self.windows, by_domain=by_domain, after_switch=after_switch, skip=skip)
            for name, one in self.systems.items()
        }

    def loss(self, readings: Readings, *, by_domain: bool) -> float:
        """Mean nats per token of one more system."""
        every_1B = np.arange(len(self.windows))[None]
        return float(totals(readings, self.windows, by_domain=by_domain).loss(every_1B)[0])


@dataclass(frozen=True)
class SeedReadings:
    """Whole documents, and documents that switch; None where there is only one domain."""

    seed: int
    whole: PartReadings
    switching: PartReadings | None

    @property
    def parts(self) -> dict[str, PartReadings]:
        """By name."""
        return {"whole": self.whole} | ({"switching": self.switching} if self.switching is not None else {})


def seed_figures(readings: SeedReadings, domains: Sequence[str]) -> Figures:
    """Everything about one seed's documents; `domains` in the order of their columns."""
    whole, switching = readings.whole, readings.switching
    of_whole = whole.totals(by_domain=True)
    of_switching = switching.totals(by_domain=False) if switching is not None else {}
    after = switching.totals(by_domain=False, after_switch=True) if switching is not None else {}
    compared = {
        "whole": compare(of_whole),
        "later": compare(whole.totals(by_domain=True, skip=FIRST_TOKENS)),
        "switching": compare(of_switching) if of_switching else {},
        "after_switch": compare(after) if after else {},
    }
    return {
        "seed": readings.seed,
        "num_documents": len(whole.windows),
        "num_tokens": int(whole.windows.counted.sum()),
        "num_switching": len(switching.windows) if switching is not None else 0,
        "switch_at": switching.windows.switch_at if switching is not None else None,
        "systems": {
            name: {
                **{part: _plain(intervals.get(name, {})) for part, intervals in compared.items()},
                "domains": dict(zip(domains, domain_losses(one, whole.windows), strict=True)),
                "tokens_per_s": one.tokens_per_s,
            }
            for name, one in whole.systems.items()
        },
        "routed_minus": _differences(of_whole, of_switching),
        "routing": _routing(whole, switching),
        "around_switch": _around_switch(switching) if switching is not None else None,
    }


def newcomer_figures(whole: PartReadings, without: Mapping[int, Readings], domains: Sequence[str]) -> Figures:
    """What an expert brings that joins, and what it costs the others; `without[i]` is the release before domain i's."""
    base, oracle, routed = (
        np.array(domain_losses(whole.systems[name], whole.windows)) for name in (BASE_ALONE, ORACLE, ROUTED)
    )
    found: Figures = {}
    for index, readings in without.items():
        before = np.array(domain_losses(readings, whole.windows))
        change = np.delete(routed - before, index)
        gain = base[index] - oracle[index]
        found[domains[index]] = {
            "loss_without": float(before[index]),
            "loss_with": float(routed[index]),
            "kept_by_newcomer": float((base[index] - routed[index]) / gain) if gain else None,
            "old_domains": float(change.mean()) if len(change) else None,
            "worst_old_domain": float(change.max()) if len(change) else None,
        }
    return found


def unknown_figures(part: PartReadings) -> Figures:
    """Of text that belongs to no expert: the base model should read it."""
    sums = part.totals(by_domain=False)
    return {
        "num_documents": len(part.windows),
        "losses": {name: part.loss(one, by_domain=False) for name, one in part.systems.items()},
        "routed_minus_base": as_list(difference(sums[ROUTED], sums[BASE_ALONE])),
        "experts_per_token": experts_per_token(part.systems[ROUTED], part.windows),
        "utilisation": asdict(utilisation(part.systems[ROUTED].weights_BTE, part.windows)),
        "confidence": float(part.scores_BTC.max(axis=2)[:, :-1][part.windows.counted].mean()),
    }


def gate_figures(gate: Gate) -> Figures:
    """A gate's settings."""
    return {"gate_type": gate.gate_type.value, "threshold": gate.threshold, "max_experts": gate.max_experts}


def filter_figures(bayes_filter: BayesFilter) -> Figures:
    """A filter's constants."""
    return {"stickiness": bayes_filter.stickiness, "temper": bayes_filter.temper}


def evidence_figures(scores: BayesScores) -> Figures:
    """What a filter hears."""
    return {
        "bigram_weight": scores.bigram_weight,
        "trunk_weight": scores.trunk_weight,
        "tap_layer": scores.rows.tap_layer if scores.rows else None,
    }


def systems_over_seeds(readings: Sequence[SeedReadings]) -> Figures:
    """Of every system, by part: its mean loss, and by how much the routed mixture's is above it.

    With 95 % intervals over seeds and documents: every seed has documents, and peers that are trained, of its own.
    """
    found: Figures = {}
    for part in readings[0].parts:
        losses = [_losses(one.parts[part], by_domain=part == "whole", seed=place) for place, one in enumerate(readings)]
        for name in losses[0]:
            loss_SR = np.stack([by_name[name] for by_name in losses])
            routed_SR = np.stack([by_name[ROUTED] for by_name in losses])
            row = {"loss": as_list(over_seeds_interval(loss_SR))}
            if name != ROUTED:
                row["routed_minus"] = as_list(over_seeds_interval(routed_SR - loss_SR))
            found.setdefault(name, {})[part] = row
    return found


def _losses(part: PartReadings, *, by_domain: bool, seed: int) -> dict[str, np.ndarray]:
    """Of every system, with its resamples, [1 + R]; all paired."""
    sums = part.totals(by_domain=by_domain)
    picks_RB = resamples(sums[ROUTED].groups_B, seed=seed)
    return {name: one.loss(picks_RB) for name, one in sums.items()}


def over_seeds(seeds: Sequence[Figures]) -> Figures:
    """Mean, least and largest of the headline figures, where every seed has them."""
    headlines = [_headline(seed) for seed in seeds]
    found: Figures = {}
    for name in headlines[0]:
        values = [value for headline in headlines if (value := headline[name]) is not None]
        if len(values) == len(headlines):
            found[name] = {"mean": float(np.mean(values)), "least": min(values), "largest": max(values)}
    return found


def _headline(seed: Figures) -> dict[str, float | None]:
    routed, oracle, routing = seed["systems"][ROUTED], seed["systems"][ORACLE], seed["routing"]
    undefined = [None]
    return {
        "kept": routed["whole"]["kept"][0],
        "kept_later": routed["later"]["kept"][0],
        "kept_switching": routed["switching"].get("kept", undefined)[0],
        "loss": routed["whole"]["loss"][0],
        "loss_switching": routed["switching"].get("loss", undefined)[0],
        "after_switch": routed["after_switch"].get("loss", undefined)[0],
        "after_switch_oracle": oracle["after_switch"].get("loss", undefined)[0],
        "agreement": routing["agreement"],
        "agreement_switching": routing["agreement_switching"],
        "experts_per_token": routing["experts_per_token"],
        "ece": routing["calibration"]["ece"],
        "imbalance": routing["utilisation"]["imbalance"],
        "max_violation": routing["utilisation"]["max_violation"],
    }


def _routing(whole: PartReadings, switching: PartReadings | None) -> Figures:
    routed = whole.systems[ROUTED]
    return {
        "experts_per_token": experts_per_token(routed, whole.windows),
        "agreement": token_accuracy(routed, whole.windows),
        "agreement_switching": (
            token_accuracy(switching.systems[ROUTED], switching.windows) if switching is not None else None
        ),
        "utilisation": asdict(utilisation(routed.weights_BTE, whole.windows)),
        "calibration": asdict(calibration(whole.scores_BTC, whole.windows)),
    }


def _differences(whole: Mapping[str, Totals], switching: Mapping[str, Totals]) -> Figures:
    """The routed mixture's loss minus that of the others, on the same documents."""
    return {
        name: {
            "whole": as_list(difference(whole[ROUTED], whole[name])),
            "switching": as_list(difference(switching[ROUTED], switching[name])) if switching else None,
        }
        for name in whole
        if name != ROUTED
    }


def _around_switch(part: PartReadings) -> Figures:
    """Mean loss by distance from the switch, in tokens; 0 is the second domain's first token."""
    switch_at = part.windows.switch_at
    assert switch_at is not None
    first = max(switch_at + _AROUND_SWITCH[0], 1)
    last = min(switch_at + _AROUND_SWITCH[1], part.windows.token_ids_BT.shape[1] - 1)
    return {
        "distance": [position - switch_at for position in range(first, last + 1)],
        "losses": {
            name: [round(float(loss), 4) for loss in part.systems[name].nats_BT[:, first - 1 : last].mean(axis=0)]
            for name in (BASE_ALONE, ORACLE, ROUTED)
        },
    }


def _plain(intervals: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {name: as_list(one) for name, one in intervals.items()}


def as_list(one: Interval) -> list[float | None]:
    """[value, low, high]; None for what is not defined, which JSON has no number for."""
    return [round(value, 5) if np.isfinite(value) else None for value in (one.value, one.low, one.high)]
