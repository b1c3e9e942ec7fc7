"""The adapters that the studies need: trained by the worker's own code, kept, and found again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.routing_quality.experts import RANK, train_adapter
from benchmarks.routing_quality.texts import DomainText

STEPS = 50
HALVED, SUBSET_OF = "shakespeare", "gsm8k"
HALF_A, HALF_B, FIFTH = f"{HALVED}-a", f"{HALVED}-b", f"{SUBSET_OF}-fifth"

Experts = list[tuple[str, Path]]


def relatives(domains: Sequence[DomainText]) -> list[DomainText]:
    """Two halves of one domain's training text, and a fifth of another's."""
    by_name = {domain.name: domain for domain in domains}
    halved, whole = by_name[HALVED], by_name[SUBSET_OF]
    return [
        replace(halved, name=HALF_A, train=halved.train[0::2]),
        replace(halved, name=HALF_B, train=halved.train[1::2]),
        replace(whole, name=FIFTH, train=whole.train[::5]),
    ]


def train_all(domains: Sequence[DomainText], *, base_model: str, folder: Path, seed: int) -> Experts:
    """One adapter of rank 8 per domain."""
    return [
        (
            domain.name,
            train_adapter(
                domain.name,
                [domain],
                base_model=base_model,
                num_steps=STEPS,
                rank=RANK,
                seed=seed,
                folder=folder,
            ),
        )
        for domain in domains
    ]
