"""Large vocabularies: exact tables, hashed ones and linear heads; what they know, weigh and cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.router_studies.corpora import read_corpora
from benchmarks.router_studies.many_experts import best_seconds
from benchmarks.router_studies.next_token_heads import NextTokenHeads
from benchmarks.router_studies.pooling import cell, mean, table
from benchmarks.router_studies.setting import base_text
from benchmarks.router_studies.study import Bench, Study
from benchmarks.router_studies.trial import Behaviour, Constants, token_pairs
from benchmarks.routing_quality.texts import DomainText, read_domains
from services.shared.config import Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import BigramEvidenceStack, build_bigram_evidence
from services.shared.tokenizer import Tokenizer
from services.trainer_worker.evaluation.figures import Totals
from services.trainer_worker.evaluation.windows import Streams, Windows, switching_windows, whole_windows

LARGE = 32_768
PER_DOMAIN, NUM_SWITCHING = 16, 40
WINDOW_TOKENS, HALF, MIN_TOKENS = 256, 64, 32
PROMPT_TOKENS = 512
TAP_LAYER = 1
_SHOWN = ("accuracy", "own posterior", "experts per token")


@dataclass
class _Row:
    """Sums by figure, and what one column of it costs."""

    sums: dict[str, list[Totals]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)


def run(bench: Bench) -> Study:
    """Five domains of real text in three vocabularies."""
    demo = load_base_model(Settings(base_model=str(bench.demo / "base"), device="cpu"))
    large = large_tokenizer(bench.texts, bench.work / "tokenizer-32k.json")
    vocabularies = {
        "512": (bench.base.tokenizer, (None,)),
        "2,048": (demo.tokenizer, (None, 16, 64, 256)),
        "32,768": (large, (large.vocab_size, 16, 64, 256, 1024)),
    }
    generic = [bench.base.tokenizer.decode(ids) for ids in base_text(bench.base, bench.work / "stories260K.json")]
    rows: dict[str, _Row] = {}
    for seed in bench.seeds:
        domains = read_domains(bench.texts, seed=seed)
        for size, (tokenizer, contexts) in vocabularies.items():
            bench.say(f"seed {seed}: vocabulary of {size}")
            texts = [*(domain.train for domain in domains), tuple(generic)]
            training = [tokenizer.encode_batch(text) for text in texts]
            parts = _windows(domains, tokenizer, seed)
            for number in contexts:
                label = f"{size}: {'exact' if number in (None, tokenizer.vocab_size) else f'{number} buckets'}"
                _tables(rows.setdefault(label, _Row()), training, tokenizer, parts, number, seed)
            if size == "2,048":
                label = f"{size}: linear heads on states of tap {TAP_LAYER}"
                _heads(rows.setdefault(label, _Row()), training, demo, parts, seed)
    return _study(rows, {size: tokenizer.vocab_size for size, (tokenizer, _) in vocabularies.items()})


def large_tokenizer(folder: Path, file: Path) -> Tokenizer:
    """A byte-level BPE of 32,768 tokens over all local text; kept in `file`."""
    if not file.exists():
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=LARGE, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator((p for corpus in read_corpora(folder) for p in corpus.passages), trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        backend.save(str(file))
    return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))


def _windows(domains: Sequence[DomainText], tokenizer: Tokenizer, seed: int) -> dict[str, Windows]:
    streams = [tokenizer.encode_batch(domain.held_out) for domain in domains]
    columns = range(len(domains))
    return {
        "whole": whole_windows(
            streams, columns, num_per_domain=PER_DOMAIN, length=WINDOW_TOKENS, min_tokens=MIN_TOKENS, seed=seed
        ),
        "switching": switching_windows(streams, columns, num_documents=NUM_SWITCHING, half=HALF, seed=seed),
    }


def _tables(
    row: _Row,
    training: Sequence[Streams],
    tokenizer: Tokenizer,
    parts: dict[str, Windows],
    num_contexts: int | None,
    seed: int,
) -> None:
    tables = [
        build_bigram_evidence(streams, tokenizer.vocab_size, num_contexts=num_contexts, seed=seed)
        for streams in training
    ]
    stack = BigramEvidenceStack(tables)
    for part, windows in parts.items():
        _record(row, part, token_pairs(stack, windows), windows)
    ids_T = parts["whole"].token_ids_BT.numpy().ravel()[: PROMPT_TOKENS + 1]
    seconds = best_seconds(lambda: stack.log_evidence(ids_T[:-1], ids_T[1:]))
    row.costs = {
        "bytes": stack.num_bytes / len(tables),
        "pairs": float(np.mean([len(one.pair_keys_N) for one in tables])),
        "us": 1e6 * seconds / PROMPT_TOKENS / len(tables),
    }


def _heads(row: _Row, training: Sequence[Streams], base: LoadedBase, parts: dict[str, Windows], seed: int) -> None:
    heads = NextTokenHeads.train(base, training, tap_layer=TAP_LAYER, seed=seed)
    for part, windows in parts.items():
        _record(row, part, heads.log_evidence(base, windows), windows)
    one = Windows(*(tensor[:2] for tensor in _plain(parts["whole"])))
    seconds = best_seconds(lambda: heads.log_evidence(base, one), repeats=3)
    num_columns = len(heads.weights_CDV)
    row.costs = {
        "bytes": heads.num_bytes / num_columns,
        "us": 1e6 * seconds / one.token_ids_BT.numel() / num_columns,
    }


def _plain(windows: Windows) -> tuple[Any, Any, Any]:
    return windows.token_ids_BT, windows.lengths_B, windows.domains_BT


def _record(row: _Row, part: str, evidence_BTC: np.ndarray, windows: Windows) -> None:
    posterior_BTC = Constants().posteriors(evidence_BTC)
    behaviour = Behaviour.of(posterior_BTC, Constants().weights(posterior_BTC), windows)
    for name in _SHOWN:
        row.sums.setdefault(f"{name}, {part}", []).append(behaviour.totals[name])


def _study(rows: dict[str, _Row], sizes: dict[str, int]) -> Study:
    figures = {
        label: {name: mean(seeds) for name, seeds in row.sums.items()} | {"costs": row.costs}
        for label, row in rows.items()
    }
    header = (
        "evidence", "token accuracy, whole", "switching", "own posterior, whole", "experts per token",
        "distinct pairs", "memory per expert, MB", "look-up, microseconds per token and column",
    )  # fmt: skip
    lines = [
        [
            label,
            cell(one["accuracy, whole"]),
            cell(one["accuracy, switching"]),
            cell(one["own posterior, whole"]),
            f"{one['experts per token, whole']['value']:.2f}",
            f"{one['costs']['pairs']:,.0f}" if "pairs" in one["costs"] else "",
            f"{one['costs']['bytes'] / 1e6:.2f}",
            f"{one['costs']['us']:.3f}",
        ]
        for label, one in figures.items()
    ]
    return Study(
        title="Evidence in large vocabularies",
        tables=table(header, lines),
        figures={"rows": figures, "vocabularies": sizes},
    )
