"""Two dozen trained experts: what routing keeps of their gains, beside a release of only five of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.router_studies.adapters import train_all
from benchmarks.router_studies.corpora import Corpus, read_corpora
from benchmarks.router_studies.many_experts import LEAST_PER_DOMAIN, MOST_CHARACTERS, stack_of
from benchmarks.router_studies.pooling import cell, kept, mean, table
from benchmarks.router_studies.reader import Reader
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Behaviour, Constants, token_pairs
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.trainer_worker.evaluation.figures import Totals, totals
from services.trainer_worker.evaluation.windows import Windows, whole_windows

NUMBERS = (5, 24)
WINDOW_TOKENS, MIN_TOKENS = 256, 64
PER_DOMAIN = 2 * LEAST_PER_DOMAIN


def run(bench: Bench) -> Study:
    """One adapter per domain and seed; the smaller release holds the first of the same experts."""
    corpora = read_corpora(bench.texts)[: max(NUMBERS)]
    losses: dict[int, dict[str, list[Totals]]] = {number: {} for number in NUMBERS}
    behaviours: dict[int, list[Behaviour]] = {number: [] for number in NUMBERS}
    for seed in bench.seeds:
        splits = [corpus.split(seed, most_characters=MOST_CHARACTERS) for corpus in corpora]
        folder = bench.work / f"many{seed}"
        bench.say(f"seed {seed}: training {len(splits)} experts")
        experts = train_all(splits, base_model=bench.base.name, folder=folder, seed=seed)
        encode, vocab_size = bench.base.tokenizer.encode_batch, bench.base.tokenizer.vocab_size
        tables = [build_bigram_evidence(encode(split.train), vocab_size, seed=seed) for split in splits]
        held_out = [encode(split.held_out) for split in splits]
        for number in NUMBERS:
            bench.say(f"seed {seed}: reading with {number} experts")
            windows = whole_windows(
                held_out[:number],
                range(number),
                num_per_domain=PER_DOMAIN,
                length=WINDOW_TOKENS,
                min_tokens=MIN_TOKENS,
                seed=seed,
            )
            posterior_BTC = Constants().posteriors(token_pairs(stack_of(tables[:number], bench.base_table), windows))
            weights_BTC = Constants().weights(posterior_BTC)
            behaviours[number].append(Behaviour.of(posterior_BTC, weights_BTC, windows))
            with Reader.load(bench.base, experts[:number], folder / "readings") as reader:
                for system, one in _read(reader, windows, weights_BTC, [name for name, _ in experts[:number]]).items():
                    losses[number].setdefault(system, []).append(one)
    return _study(corpora, losses, behaviours)


def _read(reader: Reader, windows: Windows, weights_BTC: np.ndarray, names: Sequence[str]) -> dict[str, Totals]:
    readings = {
        "base": reader.alone(windows, None),
        "oracle": reader.oracle(windows, names),
        "uniform mixture": reader.uniform(windows, names),
        "routed": reader.read(windows, weights_BTC, names),
    }
    return {system: totals(one, windows, by_domain=True) for system, one in readings.items()}


def _study(
    corpora: Sequence[Corpus], losses: dict[int, dict[str, list[Totals]]], behaviours: dict[int, list[Behaviour]]
) -> Study:
    figures: dict[str, Any] = {}
    rows = []
    for number, systems in losses.items():
        for system, seeds in systems.items():
            one = {"loss": mean(seeds), "kept": kept(seeds, systems["base"], systems["oracle"])}
            if system == "routed":
                one |= {
                    name: mean([seed.totals[name] for seed in behaviours[number]])
                    for name in ("accuracy", "own posterior", "experts per token")
                }
            figures[f"{number} experts: {system}"] = one
            shown = [cell(one[name]) if name in one else "" for name in ("kept", "accuracy", "experts per token")]
            rows.append([number, system, f"{one['loss']['value']:.3f}", *shown])
    header = ["experts", "system", "loss", "kept", "token accuracy", "experts per token"]
    return Study(
        title="Two dozen trained experts",
        tables=table(header, rows),
        figures={"systems": figures, "domains": [corpus.name for corpus in corpora]},
    )
