"""More experts: what becomes of routing, memory and look-ups with a hundred small domains."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.router_studies.corpora import Corpus, families_of, read_corpora
from benchmarks.router_studies.pooling import cell, mean, table
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Behaviour, Constants, token_pairs
from services.shared.modeling.bigram_evidence import BigramEvidence, BigramEvidenceStack, build_bigram_evidence
from services.shared.modeling.size_correction import correction, size_curve
from services.trainer_worker.evaluation.windows import whole_windows

NUMBERS = (5, 10, 24, 50, 100, 158)
MOST_CHARACTERS = 120_000
WINDOW_TOKENS, MIN_TOKENS = 256, 64
NUM_WINDOWS, LEAST_PER_DOMAIN = 200, 3
PROMPT_TOKENS, DECODING = 512, 16
_REPEATS = 9
_SHOWN = ("accuracy", "family accuracy", "own posterior", "experts per token", "entropy, bits", "base share")


def run(bench: Bench) -> Study:
    """Token pairs alone: no adapter is needed to see whose text a router takes it for."""
    corpora = read_corpora(bench.texts)
    base_table = bench.base_table
    behaviours: dict[int, list[Behaviour]] = {number: [] for number in NUMBERS}
    costs: dict[int, dict[str, float]] = {}
    for seed in bench.seeds:
        splits = [corpus.split(seed, most_characters=MOST_CHARACTERS) for corpus in corpora]
        training = [bench.base.tokenizer.encode_batch(split.train) for split in splits]
        held_out = [bench.base.tokenizer.encode_batch(split.held_out) for split in splits]
        tables = [build_bigram_evidence(streams, base_table.vocab_size, seed=seed) for streams in training]
        for number in NUMBERS:
            bench.say(f"seed {seed}: {number} experts")
            stack = stack_of(tables[:number], base_table)
            windows = whole_windows(
                held_out[:number],
                range(number),
                num_per_domain=max(NUM_WINDOWS // number, LEAST_PER_DOMAIN),
                length=WINDOW_TOKENS,
                min_tokens=MIN_TOKENS,
                seed=seed,
            )
            posterior_BTC = Constants().posteriors(token_pairs(stack, windows))
            weights_BTC = Constants().weights(posterior_BTC)
            families = families_of(corpora[:number])
            behaviours[number].append(Behaviour.of(posterior_BTC, weights_BTC, windows, families.tolist()))
            if number not in costs:
                costs[number] = _costs(tables[:number], base_table, windows.token_ids_BT.numpy().ravel())
    return _study(corpora, behaviours, costs)


def stack_of(tables: Sequence[BigramEvidence], base_table: BigramEvidence) -> BigramEvidenceStack:
    """These tables and the base's, corrected for their sizes."""
    curve = size_curve(base_table)
    every = [*tables, base_table]
    return BigramEvidenceStack(every, [correction(curve, one.num_tokens) for one in every])


def _costs(tables: Sequence[BigramEvidence], base_table: BigramEvidence, token_ids_N: np.ndarray) -> dict[str, float]:
    """Bytes, and processor microseconds per token, the best of nine."""
    stack = stack_of(tables, base_table)
    constants = Constants()
    ids_T = token_ids_N[: PROMPT_TOKENS + 1]
    evidence_TC = stack.log_evidence(ids_T[:-1], ids_T[1:])
    posterior_TC = constants.posteriors(evidence_TC[None])[0]

    def filter_prompt() -> None:
        constants.bayes_filter(evidence_TC.shape[1]).advance(posterior_TC[0], evidence_TC)

    def decode_step() -> None:
        step_BC = stack.log_evidence(ids_T[:DECODING], ids_T[1 : DECODING + 1])
        posterior_BC = constants.bayes_filter(step_BC.shape[1]).advance_batch(posterior_TC[:DECODING], step_BC)
        constants.weights(posterior_BC[None])

    return {
        "table_bytes": _file_bytes(tables) / len(tables),
        "table_tokens": float(np.mean([one.num_tokens for one in tables])),
        "stack_bytes": float(stack.num_bytes),
        "build_ms": 1e3 * best_seconds(lambda: stack_of(tables, base_table), repeats=3),
        "newcomer_ms": 1e3 * best_seconds(lambda: stack.with_newcomer(tables[0]), repeats=3),
        "look_up_us": 1e6 * best_seconds(lambda: stack.log_evidence(ids_T[:-1], ids_T[1:])) / PROMPT_TOKENS,
        "filter_us": 1e6 * best_seconds(filter_prompt) / PROMPT_TOKENS,
        "gate_us": 1e6 * best_seconds(lambda: constants.weights(posterior_TC[None])) / PROMPT_TOKENS,
        "decode_step_us": 1e6 * best_seconds(decode_step),
    }


def best_seconds(work: Callable[[], object], *, repeats: int = _REPEATS) -> float:
    """Least processor time of this thread, so that neighbours on the machine count little."""
    seconds = []
    for _ in range(repeats):
        started_at = time.thread_time()
        work()
        seconds.append(time.thread_time() - started_at)
    return min(seconds)


def _file_bytes(tables: Sequence[BigramEvidence]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        total = 0
        for one in tables:
            one.save(path)
            total += path.stat().st_size
    return total


def _study(
    corpora: Sequence[Corpus], behaviours: dict[int, list[Behaviour]], costs: dict[int, dict[str, float]]
) -> Study:
    figures: dict[str, Any] = {}
    for number, seeds in behaviours.items():
        figures[str(number)] = {name: mean([one.totals[name] for one in seeds]) for name in _SHOWN} | costs[number]
    quality = table(
        ["experts", *_SHOWN], [[number, *(cell(one[name]) for name in _SHOWN)] for number, one in figures.items()]
    )
    cost = table(
        [
            "experts", "pairs per table", "file, KB each", "memory, MB", "stack made anew, ms", "one newcomer, ms",
            "look-up", "filter", "gate", "decoding step of 16, all three",
        ],
        [
            [
                number,
                f"{one['table_tokens']:,.0f}",
                f"{one['table_bytes'] / 1e3:.0f}",
                f"{one['stack_bytes'] / 1e6:.1f}",
                f"{one['build_ms']:.0f}",
                f"{one['newcomer_ms']:.1f}",
                *(f"{one[key]:.2f}" for key in ("look_up_us", "filter_us", "gate_us")),
                f"{one['decode_step_us']:.0f}",
            ]
            for number, one in figures.items()
        ],
    )  # fmt: skip
    names = [corpus.name for corpus in corpora]
    return Study(
        title="Routing among many small experts",
        tables=f"{quality}\n\nProcessor time in microseconds per token of a prompt of 512, and per step.\n\n{cost}",
        figures={"numbers": figures, "domains": names},
    )
