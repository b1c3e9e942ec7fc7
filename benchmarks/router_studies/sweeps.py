"""Are today's constants right? One at a time, on the demo and on real text, and a grid of two that work together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from benchmarks.router_studies.fitting import Evidence, fit_weights
from benchmarks.router_studies.pooling import cell, difference, kept, mean, table
from benchmarks.router_studies.reader import Reader
from benchmarks.router_studies.setting import Setting
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Behaviour, Constants
from services.shared.modeling.router_artifact import DEFAULT_TRUNK_WEIGHT, TRUNK_ALONE_WEIGHT
from services.trainer_worker.evaluation.figures import Totals, totals
from services.trainer_worker.evaluation.windows import Windows

TODAY = "today's"
_STICKINESSES = (0.001, 0.01, 0.02, 0.05, 0.1)
_TEMPERS = (0.2, 0.5, 0.7, 1.0)
_THRESHOLDS = (0.02, 0.05, 0.2, 0.35)
_DOCUMENTS = {"demo": (10, 20), "real text": (10, 30)}
"""Whole ones per domain, and switching ones, per seed."""
_TAPS = {"demo": (1,), "real text": (0, 1, 4)}
PARTS = ("whole", "switching")


@dataclass(frozen=True)
class Variant:
    """Constants, and how much each kind of evidence counts; `tap_layer` None: token pairs alone."""

    constants: Constants
    bigram_weight: float = 1.0
    trunk_weight: float = 0.0
    tap_layer: int | None = None


def variants(taps: Sequence[int]) -> dict[str, Variant]:
    """Everything that is tried, by what differs from today."""
    tried = {TODAY: Variant(Constants())}
    tried |= {f"s = {value:g}": Variant(Constants(stickiness=value)) for value in _STICKINESSES}
    tried |= {f"tau = {value:g}": Variant(Constants(temper=value)) for value in _TEMPERS}
    tried |= {f"threshold {value:g}": Variant(Constants(threshold=value)) for value in _THRESHOLDS}
    grid = product((0.01, 0.02), (0.5,))
    tried |= {f"s = {s:g}, tau = {tau:g}": Variant(Constants(stickiness=s, temper=tau)) for s, tau in grid}
    for tap in taps:
        both = Variant(Constants(), trunk_weight=DEFAULT_TRUNK_WEIGHT, tap_layer=tap)
        tried[f"pairs + states of tap {tap}"] = both
        tried[f"states of tap {tap} alone"] = Variant(Constants(), 0.0, TRUNK_ALONE_WEIGHT, tap)
    return tried


@dataclass
class _Sums:
    """By part: whole documents, and such that switch."""

    loss: dict[str, list[Totals]] = field(default_factory=dict)
    experts: dict[str, list[Totals]] = field(default_factory=dict)
    accuracy: dict[str, list[Totals]] = field(default_factory=dict)


def run(bench: Bench) -> Study:
    """In every setting."""
    sections, figures = [], {}
    for name, make in bench.settings.items():
        figures[name] = measured = _measure(bench, make, *_DOCUMENTS[name])
        sections.append(f"#### {name}\n\n{_table(measured['variants'])}")
        if measured["fitted"]:
            sections.append(f"Fitted on validation text (pairs, states; tap 1): {measured['fitted']}")
    return Study(title="Sweeps of the router's constants", tables="\n\n".join(sections), figures=figures)


def _measure(bench: Bench, make: Callable[[int], Setting], num_whole: int, num_switching: int) -> dict[str, Any]:
    sums: dict[str, _Sums] = {}
    fitted: list[tuple[float, float]] = []
    for seed in bench.seeds:
        setting = make(seed)
        taps = _TAPS[setting.name]
        parts = {
            "whole": setting.whole(setting.held_out, num_whole),
            "switching": setting.switching(setting.held_out, num_switching),
        }
        evidence = {part: Evidence.of(setting, windows, taps) for part, windows in parts.items()}
        weights = fit_weights(setting, tap_layer=1)
        fitted.append(weights)
        tried = variants(taps)
        tried["pairs + states of tap 1, fitted"] = Variant(Constants(), *weights, 1)
        with Reader.load(setting.base, setting.experts, setting.folder / "readings") as reader:
            for part, windows in parts.items():
                _read_bounds(reader, setting, part, windows, sums)
                for label, variant in tried.items():
                    bench.say(f"seed {seed}, {part}: {label}")
                    _read(reader, setting, part, windows, evidence[part], variant, sums.setdefault(label, _Sums()))
    return {"variants": _figures(sums), "fitted": fitted}


def _read_bounds(reader: Reader, setting: Setting, part: str, windows: Windows, sums: dict[str, _Sums]) -> None:
    for label, readings in (
        ("base", reader.alone(windows, None)),
        ("oracle", reader.oracle(windows, setting.domains)),
    ):
        one = totals(readings, windows, by_domain=part == "whole")
        sums.setdefault(label, _Sums()).loss.setdefault(part, []).append(one)


def _read(  # noqa: PLR0913, PLR0917
    reader: Reader,
    setting: Setting,
    part: str,
    windows: Windows,
    evidence: Evidence,
    variant: Variant,
    sums: _Sums,
) -> None:
    evidence_BTC = evidence.summed(variant.bigram_weight, variant.trunk_weight, variant.tap_layer)
    posterior_BTC = variant.constants.posteriors(evidence_BTC)
    weights_BTC = variant.constants.weights(posterior_BTC)
    readings = reader.read(windows, weights_BTC, setting.domains)
    behaviour = Behaviour.of(posterior_BTC, weights_BTC, windows)
    sums.loss.setdefault(part, []).append(totals(readings, windows, by_domain=part == "whole"))
    sums.experts.setdefault(part, []).append(behaviour.totals["experts per token"])
    sums.accuracy.setdefault(part, []).append(behaviour.totals["accuracy"])


def _figures(sums: Mapping[str, _Sums]) -> dict[str, Any]:
    base, oracle, today = (sums[label].loss for label in ("base", "oracle", TODAY))
    return {
        label: {
            part: {
                "loss": mean(one.loss[part]),
                "kept": kept(one.loss[part], base[part], oracle[part]),
                "minus today's": difference(one.loss[part], today[part]),
                "experts per token": mean(one.experts[part]),
                "token accuracy": mean(one.accuracy[part]),
            }
            for part in PARTS
        }
        for label, one in sums.items()
        if label not in {"base", "oracle"}
    }


def _table(figures: Mapping[str, Any]) -> str:
    header = ["router"]
    for part in PARTS:
        header += [f"kept, {part}", f"loss - today's, {part}", f"experts per token, {part}"]
    rows = []
    for label, one in figures.items():
        row = [label]
        for part in PARTS:
            minus = "" if label == TODAY else cell(one[part]["minus today's"], digits=4, signed=True)
            row += [cell(one[part]["kept"]), minus, f"{one[part]['experts per token']['value']:.2f}"]
        rows.append(row)
    return table(header, rows)
