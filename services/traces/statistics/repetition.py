"""Mixtral's table 5, and what a random choice would have in it."""

from math import comb

from services.traces.statistics.neighbours import Neighbours
from services.traces.statistics.results import Repetition
from services.traces.statistics.sequence_counts import SequenceCounts


def repetition(counts: SequenceCounts, neighbours: Neighbours, *, num_domains: int, top_k: int) -> Repetition:
    """Of neighbours, over all domains and in each."""
    num_experts = counts.first_NE.shape[1]
    shares = {
        "first": neighbours.same_first,
        "first_or_second": neighbours.first_or_second,
        "any": neighbours.any,
    }
    return Repetition(
        num_sequences=counts.num_sequences,
        num_tokens=int(counts.tokens_N.sum()),
        random_first=random_repetition(num_experts, 1),
        random_first_or_second=random_repetition(num_experts, min(top_k, 2)),
        random_any=random_repetition(num_experts, top_k),
        **{name: one.estimate() for name, one in shares.items()},
        **{f"{name}_by_domain": one.by_domain(counts.domains_N, num_domains) for name, one in shares.items()},
    )


def random_repetition(num_experts: int, top_k: int) -> float:
    """How often two random sets of `top_k` experts have one in common."""
    return 1 - comb(num_experts - top_k, top_k) / comb(num_experts, top_k)
