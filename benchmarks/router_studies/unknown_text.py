"""Text of no known domain: how much of it the base reads, at what price on known domains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.router_studies.corpora import instructions, questions
from benchmarks.router_studies.pooling import cell, difference, kept, mean, table
from benchmarks.router_studies.reader import Reader
from benchmarks.router_studies.setting import Setting
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Behaviour, Constants, token_pairs
from benchmarks.routing_quality.texts import READERS
from services.shared.modeling.bigram_evidence import BigramEvidenceStack, build_bigram_evidence
from services.trainer_worker.demo.domains import DOMAINS, HELD_BACK_DOMAINS
from services.trainer_worker.evaluation.figures import Totals, totals
from services.trainer_worker.evaluation.windows import Windows

BIASES = (0.25, 0.5, 1.0)
KNOWN_PER_DOMAIN, UNKNOWN_PER_SOURCE = 8, 6
NUM_ITEMS = 60
_HEADER = (
    "base row", "base share, unknown", "base share, known (false)", "loss on unknown - base alone", "kept, known",
    "kept - today's, known: loss",
)  # fmt: skip

Sums = dict[str, list[Totals]]


def run(bench: Bench) -> Study:
    """In every setting: the unknown text of one is the other's known."""
    sections, figures = [], {}
    for name, make in bench.settings.items():
        measured = _measure(bench, make)
        figures[name] = measured
        rows = [
            [
                row,
                cell(one["base share, unknown"]),
                cell(one["base share, known"]),
                cell(one["unknown - base"], signed=True),
                cell(one["kept"]),
                cell(one["known - today's"], signed=True, digits=4),
            ]
            for row, one in measured["rows"].items()
        ]
        sources = table(
            ["source", "base share", "routed - base alone", "uniform mixture - base alone"],
            [
                [source, cell(one["base share"]), cell(one["routed - base"], signed=True),
                 cell(one["uniform - base"], signed=True)]
                for source, one in measured["sources"].items()
            ],
        )  # fmt: skip
        sections.append(f"#### {name}\n\n{table(_HEADER, rows)}\n\nToday's base row, by source:\n\n{sources}")
    return Study(title="Text of no known domain", tables="\n\n".join(sections), figures=figures)


def unknown_streams(bench: Bench, setting: Setting) -> dict[str, list[list[int]]]:
    """Documents that neither the base's training nor any expert has to do with, by source."""
    texts: dict[str, Sequence[str]] = {
        f"demo {name}": [item.text for item in DOMAINS[name].generate(setting.seed, NUM_ITEMS, "held_out")]
        for name in HELD_BACK_DOMAINS
    }
    texts["NQ-open"] = list(questions(bench.texts))
    texts["instructions"] = list(instructions(bench.texts))
    if setting.name == "demo":
        texts |= {name: [text[:700] for text in READERS[name](bench.texts)] for name in ("gsm8k", "wikipedia", "grimm")}
    return {name: setting.base.tokenizer.encode_batch(text) for name, text in texts.items()}


def _measure(bench: Bench, make: Callable[[int], Setting]) -> dict[str, Any]:
    known: dict[str, Sums] = {}
    unknown: dict[str, Sums] = {}
    by_source: dict[str, Sums] = {}
    for seed in bench.seeds:
        setting = make(seed)
        names = setting.domains
        sources = unknown_streams(bench, setting)
        known_windows = setting.whole(setting.held_out, KNOWN_PER_DOMAIN)
        unknown_windows = {
            source: setting.of_nobody(streams, UNKNOWN_PER_SOURCE) for source, streams in sources.items()
        }
        with Reader.load(setting.base, setting.experts, setting.folder / "readings") as reader:
            for system, readings in (
                ("base", reader.alone(known_windows, None)),
                ("oracle", reader.oracle(known_windows, names)),
            ):
                _add(known.setdefault(system, {}), {"loss": totals(readings, known_windows, by_domain=True)})
            for source, windows in unknown_windows.items():
                base, uniform = reader.alone(windows, None), reader.uniform(windows, names)
                sums = {
                    "base": totals(base, windows, by_domain=False),
                    "uniform": totals(uniform, windows, by_domain=False),
                }
                _add(by_source.setdefault(source, {}), sums)
            for row, stack in _stacks(setting).items():
                bench.say(f"seed {seed}: {row}")
                _add(known.setdefault(row, {}), _routed(reader, setting, stack, known_windows))
                every = [_routed(reader, setting, stack, windows) for windows in unknown_windows.values()]
                _add(unknown.setdefault(row, {}), _joined(every))
                if row == "today's":
                    for source, sums in zip(unknown_windows, every, strict=True):
                        _add(by_source[source], sums)
    return {"rows": _rows(known, unknown, by_source), "sources": _sources(by_source)}


def _stacks(setting: Setting) -> Mapping[str, BigramEvidenceStack]:
    tables = [setting.table(name) for name in setting.domains]
    everything = [stream for name in setting.domains for stream in setting.training[name]]
    pooled = build_bigram_evidence(everything, setting.base.tokenizer.vocab_size, seed=setting.seed)
    mixed = build_bigram_evidence(
        _alternating(everything, setting.generic), setting.base.tokenizer.vocab_size, seed=setting.seed
    )
    return {
        "today's": setting.stack(tables),
        **{f"+ {bias:g} nats": setting.stack(tables, base_bias=bias) for bias in BIASES},
        "all experts' text": setting.stack(tables, base=pooled),
        "its own and all experts' text": setting.stack(tables, base=mixed),
    }


def _alternating(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """As many tokens of the one as of the other."""
    budget = min(sum(map(len, first)), sum(map(len, second)))
    chosen: list[Sequence[int]] = []
    for streams in (first, second):
        ends = np.cumsum([len(stream) for stream in streams])
        chosen += list(streams[: int(np.searchsorted(ends, budget)) + 1])
    return chosen


def _routed(reader: Reader, setting: Setting, stack: BigramEvidenceStack, windows: Windows) -> dict[str, Totals]:
    constants = Constants()
    posterior_BTC = constants.posteriors(token_pairs(stack, windows))
    weights_BTC = constants.weights(posterior_BTC)
    readings = reader.read(windows, weights_BTC, setting.domains)
    behaviour = Behaviour.of(posterior_BTC, weights_BTC, windows).totals["base share"]
    return {"loss": totals(readings, windows, by_domain=True), "base share": behaviour}


def _add(target: Sums, sums: Mapping[str, Totals]) -> None:
    for name, one in sums.items():
        target.setdefault(name, []).append(one)


def _joined(sources: Sequence[Mapping[str, Totals]]) -> dict[str, Totals]:
    """Each source a group of its own."""
    return {
        name: Totals(
            np.concatenate([one[name].nats_B for one in sources]),
            np.concatenate([one[name].tokens_B for one in sources]),
            np.concatenate([np.full(len(one[name].nats_B), group) for group, one in enumerate(sources)]),
        )
        for name in sources[0]
    }


def _rows(known: dict[str, Sums], unknown: dict[str, Sums], by_source: dict[str, Sums]) -> dict[str, Any]:
    base_unknown = [
        _joined([{"loss": sums["base"][seed]} for sums in by_source.values()])["loss"]
        for seed in range(len(known["base"]["loss"]))
    ]
    base, oracle = known["base"]["loss"], known["oracle"]["loss"]
    return {
        row: {
            "base share, unknown": mean(unknown[row]["base share"]),
            "base share, known": mean(known[row]["base share"]),
            "unknown - base": difference(unknown[row]["loss"], base_unknown),
            "kept": kept(known[row]["loss"], base, oracle),
            "known - today's": difference(known[row]["loss"], known["today's"]["loss"]),
        }
        for row in unknown
    }


def _sources(by_source: dict[str, Sums]) -> dict[str, Any]:
    return {
        source: {
            "base share": mean(sums["base share"]),
            "routed - base": difference(_one_group(sums["loss"]), sums["base"]),
            "uniform - base": difference(sums["uniform"], sums["base"]),
        }
        for source, sums in by_source.items()
    }


def _one_group(seeds: Sequence[Totals]) -> list[Totals]:
    return [Totals(one.nats_B, one.tokens_B, np.zeros(len(one.nats_B), dtype=np.int64)) for one in seeds]
