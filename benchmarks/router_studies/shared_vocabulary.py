"""Experts of one domain: two halves of a corpus, a part beside the whole, an exact duplicate; and a mixed domain."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.router_studies.adapters import FIFTH, HALF_A, HALF_B, HALVED, SUBSET_OF
from benchmarks.router_studies.fitting import Evidence, fit_weights
from benchmarks.router_studies.pooling import cell, difference, kept, mean, table
from benchmarks.router_studies.reader import Reader
from benchmarks.router_studies.setting import Setting
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Constants, token_pairs
from services.shared.modeling.router_artifact import DEFAULT_TRUNK_WEIGHT, TRUNK_ALONE_WEIGHT
from services.trainer_worker.evaluation.figures import Totals, totals
from services.trainer_worker.evaluation.windows import Windows, whole_windows

TAP_LAYER = 1
NUM_WINDOWS = 24
PAIRS, ALONE = "pairs", "pairs, without the relative"


@dataclass(frozen=True)
class Scenario:
    """In the place of `domain` stands `first`; `relative`, if any, joins as the last expert."""

    domain: str
    first: str
    relative: str | None

    def names(self, setting: Setting) -> list[str]:
        """The release's experts: one column for each domain, then the relative."""
        names = [self.first if name == self.domain else name for name in setting.domains]
        return names if self.relative is None else [*names, self.relative]

    def columns(self, setting: Setting) -> list[int]:
        """The columns of those who know the domain."""
        own = setting.domains.index(self.domain)
        return [own] if self.relative is None else [own, len(setting.domains)]


_SCENARIOS = {
    "real text": {
        f"two halves of {HALVED}": Scenario(HALVED, HALF_A, HALF_B),
        f"{SUBSET_OF} and a fifth of it": Scenario(SUBSET_OF, SUBSET_OF, FIFTH),
        f"{SUBSET_OF} twice": Scenario(SUBSET_OF, SUBSET_OF, SUBSET_OF),
    },
    "demo": {
        "mathematics twice": Scenario("math", "math", "math"),
        "mixed, made of the other four": Scenario("mixed", "mixed", None),
    },
}


@dataclass
class _Sums:
    """Per seed: losses of each system, and the gate weight of the two relatives and of all others."""

    loss: dict[str, list[Totals]]
    shares: dict[str, list[list[float]]]
    experts: dict[str, list[float]]
    weights: list[tuple[float, float]]


def run(bench: Bench) -> Study:
    """In every setting, read on held-out text of the domain that has several experts."""
    sections, figures = [], {}
    makes = bench.settings | {"real text": partial(bench.real, with_relatives=True)}
    for name in bench.settings:
        for label, sums in _measure(bench, name, makes[name]).items():
            figures[f"{name}: {label}"] = one = _figures(sums)
            sections.append(f"#### {name}: {label}\n\n{_table(one)}")
    return Study(title="Experts of one domain", tables="\n\n".join(sections), figures=figures)


def _measure(bench: Bench, name: str, make: Callable[[int], Setting]) -> dict[str, _Sums]:
    found = {label: _Sums({}, {}, {}, []) for label in _SCENARIOS[name]}
    for seed in bench.seeds:
        setting = make(seed)
        with Reader.load(setting.base, setting.experts, setting.folder / "readings") as reader:
            for label, scenario in _SCENARIOS[name].items():
                bench.say(f"seed {seed}: {label}")
                _read(reader, setting, scenario, found[label])
    return found


def _read(reader: Reader, setting: Setting, scenario: Scenario, sums: _Sums) -> None:
    names, columns = scenario.names(setting), scenario.columns(setting)
    windows = whole_windows(
        [setting.held_out[scenario.domain]],
        [columns[0]],
        num_per_domain=NUM_WINDOWS,
        length=setting.window_tokens,
        min_tokens=setting.min_tokens,
        seed=setting.seed,
    )
    fitted = fit_weights(setting, tap_layer=TAP_LAYER, names=names, alike=columns)
    sums.weights.append(fitted)
    evidence = Evidence.of(setting, windows, [TAP_LAYER], names)
    summed = {
        PAIRS: evidence.summed(1.0, 0.0, None),
        "states": evidence.summed(0.0, TRUNK_ALONE_WEIGHT, TAP_LAYER),
        "pairs + states": evidence.summed(1.0, DEFAULT_TRUNK_WEIGHT, TAP_LAYER),
        "pairs + states, fitted": evidence.summed(*fitted, TAP_LAYER),
    }
    experts = dict.fromkeys(names[column] for column in columns)
    singles = {f"{expert} alone": reader.alone(windows, expert) for expert in experts}
    for label, readings in {"base": reader.alone(windows, None), **singles}.items():
        sums.loss.setdefault(label, []).append(totals(readings, windows, by_domain=True))
    best = min(singles, key=lambda label: singles[label].nats_BT[windows.counted].mean())
    sums.loss.setdefault("oracle", []).append(sums.loss[best][-1])
    for label, evidence_BTC in summed.items():
        _route(reader, windows, names, columns, (label, evidence_BTC), sums)
    if scenario.relative is not None:
        fewer = names[:-1]
        pairs_BTC = token_pairs(setting.stack([setting.table(name) for name in fewer]), windows)
        _route(reader, windows, fewer, columns[:1], (ALONE, pairs_BTC), sums)


def _route(
    reader: Reader,
    windows: Windows,
    names: list[str],
    columns: list[int],
    labelled: tuple[str, np.ndarray],
    sums: _Sums,
) -> None:
    label, evidence_BTC = labelled
    weights_BTC = Constants().gates(evidence_BTC)
    readings = reader.read(windows, weights_BTC, names)
    weights_NC = weights_BTC[:, :-1][windows.counted]
    shares = [float(weights_NC[:, column].mean()) for column in columns]
    sums.loss.setdefault(label, []).append(totals(readings, windows, by_domain=True))
    sums.shares.setdefault(label, []).append([*shares, 1.0 - sum(shares)])
    sums.experts.setdefault(label, []).append(float((weights_NC[:, :-1] > 0).sum(axis=1).mean()))


def _figures(sums: _Sums) -> dict[str, Any]:
    reference = sums.loss.get(ALONE, sums.loss[PAIRS])
    systems = {
        label: {
            "loss": mean(loss),
            "kept": kept(loss, sums.loss["base"], sums.loss["oracle"]),
            "minus without the relative": difference(loss, reference),
            "shares": np.mean(sums.shares[label], axis=0).tolist() if label in sums.shares else None,
            "experts per token": float(np.mean(sums.experts[label])) if label in sums.experts else None,
        }
        for label, loss in sums.loss.items()
        if label != "oracle"
    }
    return {"systems": systems, "fitted weights (pairs, states)": sums.weights}


def _table(figures: dict[str, Any]) -> str:
    header = ["system", "loss", "kept", "loss - that without the relative", "gate weight of the relatives; of others"]
    rows = []
    for label, one in figures["systems"].items():
        shares = one["shares"]
        told = "" if shares is None else f"{' / '.join(f'{share:.2f}' for share in shares[:-1])}; {shares[-1]:.2f}"
        experts = "" if one["experts per token"] is None else f"{one['experts per token']:.2f}"
        minus = cell(one["minus without the relative"], signed=True)
        rows.append([label, f"{one['loss']['value']:.3f}", cell(one["kept"]), minus, told, experts])
    fitted = ", ".join(f"({pairs:g}, {states:g})" for pairs, states in figures["fitted weights (pairs, states)"])
    return f"{table([*header, 'experts per token'], rows)}\n\nFitted weights of pairs and states, by seed: {fitted}."
