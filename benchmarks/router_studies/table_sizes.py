"""Tables of unequal size: a newcomer with 10, 80 or all windows beside full tables, corrected and not."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.router_studies.pooling import cell, difference, kept, mean, table
from benchmarks.router_studies.reader import Reader
from benchmarks.router_studies.setting import Setting
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Behaviour, Constants, token_pairs
from services.shared.modeling.bigram_evidence import WINDOW_TOKENS, BigramEvidence, BigramEvidenceStack
from services.shared.modeling.size_correction import correction
from services.trainer_worker.evaluation.figures import Totals, totals
from services.trainer_worker.evaluation.windows import Windows

SIZES = {"10 windows": 10 * WINDOW_TOKENS, "80 windows": 80 * WINDOW_TOKENS}
PER_DOMAIN = 6
_FULL = "all windows"

Sums = dict[str, dict[str, list[Totals]]]


def run(bench: Bench) -> Study:
    """In every setting: every domain is the newcomer in turn."""
    sections, figures = [], {}
    for name, make in bench.settings.items():
        figures[name] = measured = _measure(bench, make)
        header = (
            "newcomer's table", "newcomer's tokens on its own column", "its gain kept", "others' loss - full tables'",
        )  # fmt: skip
        rows = [
            [
                label,
                cell(one["own posterior"]),
                cell(one["kept"]),
                "" if label == _FULL else cell(one["others"], signed=True, digits=4),
            ]
            for label, one in measured.items()
        ]
        sections.append(f"#### {name}\n\n{table(header, rows)}")
    return Study(title="Tables of unequal size", tables="\n\n".join(sections), figures=figures)


def _measure(bench: Bench, make: Callable[[int], Setting]) -> dict[str, Any]:
    sums: Sums = {}
    for seed in bench.seeds:
        setting = make(seed)
        windows = setting.whole(setting.held_out, PER_DOMAIN)
        with Reader.load(setting.base, setting.experts, setting.folder / "readings") as reader:
            base = totals(reader.alone(windows, None), windows, by_domain=True)
            oracle = totals(reader.oracle(windows, setting.domains), windows, by_domain=True)
            for newcomer in range(len(setting.domains)):
                bench.say(f"seed {seed}: newcomer {setting.domains[newcomer]}")
                is_own_B = base.groups_B == newcomer
                for label, stack in _stacks(setting, newcomer).items():
                    found = _routed(reader, setting, stack, windows)
                    target = sums.setdefault(label, {})
                    parts: Mapping[str, Totals] = {
                        "own posterior": _where(found["own posterior"], is_own_B),
                        "own": _where(found["loss"], is_own_B),
                        "others": _where(found["loss"], ~is_own_B),
                        "base": _where(base, is_own_B),
                        "oracle": _where(oracle, is_own_B),
                    }
                    for part, one in parts.items():
                        target.setdefault(part, []).append(one)
    return {
        label: {
            "own posterior": mean(one["own posterior"]),
            "kept": kept(one["own"], one["base"], one["oracle"]),
            "others": difference(one["others"], sums[_FULL]["others"]),
        }
        for label, one in sums.items()
    }


def _stacks(setting: Setting, newcomer: int) -> dict[str, BigramEvidenceStack]:
    """With a small table of one expert, by its size and with or without the correction."""
    curve = setting.curve()
    full = [setting.table(name) for name in setting.domains]

    def stack(tables: list[BigramEvidence], *, is_corrected: bool) -> BigramEvidenceStack:
        every = [*tables, setting.base_table]
        return BigramEvidenceStack(every, [correction(curve, t.num_tokens) if is_corrected else 0.0 for t in every])

    found = {_FULL: stack(full, is_corrected=True)}
    for label, num_tokens in SIZES.items():
        tables = list(full)
        tables[newcomer] = setting.table(setting.domains[newcomer], num_tokens)
        found[f"{label}, not corrected"] = stack(tables, is_corrected=False)
        found[f"{label}, corrected"] = stack(tables, is_corrected=True)
    return found


def _routed(reader: Reader, setting: Setting, stack: BigramEvidenceStack, windows: Windows) -> dict[str, Totals]:
    posterior_BTC = Constants().posteriors(token_pairs(stack, windows))
    weights_BTC = Constants().weights(posterior_BTC)
    readings = reader.read(windows, weights_BTC, setting.domains)
    behaviour = Behaviour.of(posterior_BTC, weights_BTC, windows)
    loss = totals(readings, windows, by_domain=True)
    return {"loss": loss, "own posterior": behaviour.totals["own posterior"]}


def _where(one: Totals, chosen_B: np.ndarray) -> Totals:
    return Totals(one.nats_B[chosen_B], one.tokens_B[chosen_B], one.groups_B[chosen_B])
