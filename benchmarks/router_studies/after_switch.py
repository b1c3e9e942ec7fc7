"""The first tokens after a switch: where loss goes, and what is the filter's share of it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.router_studies.pooling import cell, difference, mean, table
from benchmarks.router_studies.reader import Reader
from benchmarks.router_studies.setting import Setting
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Constants, token_pairs
from services.trainer_worker.evaluation.figures import Totals
from services.trainer_worker.evaluation.systems import Readings
from services.trainer_worker.evaluation.windows import AFTER_SWITCH, Windows

DISTANCES = ((1, 2), (2, 3), (3, 5), (5, 9), (9, 17), (17, 33), (33, 65), (65, 129))
DELAYS = (4, 8)
NUM_DOCUMENTS = 40
ROUTED, ORACLE = "routed, today's constants", "switching oracle"
_VARIANTS = {
    ROUTED: Constants(),
    "s = .02": Constants(stickiness=0.02),
    "s = .05": Constants(stickiness=0.05),
    "tau = .5": Constants(temper=0.5),
    "tau = .5, s = .02": Constants(temper=0.5, stickiness=0.02),
}


def run(bench: Bench) -> Study:
    """In every setting."""
    sections, figures = [], {}
    for name, make in bench.settings.items():
        figures[name] = measured = _measure(bench, make)
        sections.append(f"#### {name}\n\n{_tables(measured)}")
    return Study(title="The first tokens after a switch", tables="\n\n".join(sections), figures=figures)


def _measure(bench: Bench, make: Callable[[int], Setting]) -> dict[str, Any]:
    sums: dict[str, dict[str, list[Totals]]] = {}
    right: dict[str, list[Totals]] = {}
    for seed in bench.seeds:
        setting = make(seed)
        windows = setting.switching(setting.held_out, NUM_DOCUMENTS)
        evidence_BTC = token_pairs(setting.stack([setting.table(name) for name in setting.domains]), windows)
        with Reader.load(setting.base, setting.experts, setting.folder / "readings") as reader:
            for system, readings in _systems(bench, reader, setting, windows, evidence_BTC).items():
                parts = {part: _part(readings.nats_BT, windows, *bounds) for part, bounds in _parts(windows).items()}
                for part, one in parts.items():
                    sums.setdefault(system, {}).setdefault(part, []).append(one)
        weights_BTC = Constants().gates(evidence_BTC)
        right_BT = (weights_BTC.argmax(axis=2) == windows.domains_BT.numpy())[:, :-1]
        for part, bounds in _parts(windows).items():
            right.setdefault(part, []).append(_part(right_BT, windows, *bounds))
    return {
        "loss": {system: {part: mean(seeds) for part, seeds in parts.items()} for system, parts in sums.items()},
        "minus oracle": {
            system: {part: difference(seeds, sums[ORACLE][part]) for part, seeds in parts.items()}
            for system, parts in sums.items()
            if system != ORACLE
        },
        "token accuracy": {part: mean(seeds) for part, seeds in right.items()},
    }


def _systems(
    bench: Bench, reader: Reader, setting: Setting, windows: Windows, evidence_BTC: np.ndarray
) -> Mapping[str, Readings]:
    names = setting.domains
    bench.say(f"seed {setting.seed}: reading under {len(_VARIANTS) + len(DELAYS) + 3} systems")
    return {
        ORACLE: reader.oracle(windows, names),
        **{label: reader.read(windows, one.gates(evidence_BTC), names) for label, one in _VARIANTS.items()},
        **{
            f"oracle, told {delay} tokens late": reader.read(windows, _late(windows, len(names), delay), names)
            for delay in DELAYS
        },
        "base": reader.alone(windows, None),
        "uniform mixture": reader.uniform(windows, names),
    }


def _late(windows: Windows, num_experts: int, delay: int) -> np.ndarray:
    """An oracle that goes on with the old expert for some tokens: the price of noticing late, and nothing else."""
    assert windows.switch_at is not None
    domains_BT = windows.domains_BT.numpy().copy()
    domains_BT[:, windows.switch_at : windows.switch_at + delay] = domains_BT[:, :1]
    return np.eye(num_experts + 1)[domains_BT]


def _parts(windows: Windows) -> dict[str, tuple[int, int]]:
    """Ranges of distances, the first token of the new domain having distance 0, and sums over several."""
    assert windows.switch_at is not None
    half = windows.switch_at
    single = {
        f"{low}" if high == low + 1 else f"{low}-{high - 1}": (low, high) for low, high in DISTANCES if low < half
    }
    return single | {"first 16": (0, AFTER_SWITCH), "second half": (0, half), "whole": (1 - half, half)}


def _part(values_BT: np.ndarray, windows: Windows, low: int, high: int) -> Totals:
    """Sums over the predicted tokens at these distances from the switch."""
    assert windows.switch_at is not None
    distance_T = np.arange(1, values_BT.shape[1] + 1) - windows.switch_at
    counted_BT = windows.counted & (distance_T >= low) & (distance_T < high)
    one_group_B = np.zeros(len(windows), dtype=np.int64)
    return Totals((values_BT * counted_BT).sum(axis=1), counted_BT.sum(axis=1), one_group_B)


def _tables(measured: dict[str, Any]) -> str:
    parts = list(measured["token accuracy"])
    by_distance = table(
        [
            "tokens since the switch",
            "oracle",
            "routed - oracle",
            *list(measured["minus oracle"])[-4:-2],
            "token accuracy",
        ],
        [
            [
                part,
                f"{measured['loss'][ORACLE][part]['value']:.3f}",
                cell(measured["minus oracle"][ROUTED][part], signed=True),
                *(
                    f"{measured['minus oracle'][late][part]['value']:+.3f}"
                    for late in list(measured["minus oracle"])[-4:-2]
                ),
                f"{measured['token accuracy'][part]['value']:.3f}",
            ]
            for part in parts
        ],
    )
    variants = table(
        ["minus the oracle", "first 16", "second half", "whole"],
        [
            [system, *(cell(one[part], signed=True) for part in ("first 16", "second half", "whole"))]
            for system, one in measured["minus oracle"].items()
        ],
    )
    return f"{by_distance}\n\n{variants}"
