"""Held-out windows of the benchmark's domains: documents of one domain, and such that switch half-way."""

from collections.abc import Sequence

from benchmarks.routing_quality.texts import DomainText
from services.shared.tokenizer import Tokenizer
from services.trainer_worker.evaluation.windows import Windows, switching_windows, whole_windows

WINDOW_TOKENS = 256
SWITCH_AT = 128
MIN_TOKENS = 64


def pure_windows(
    domains: Sequence[DomainText], part: str, tokenizer: Tokenizer, *, num_per_domain: int, seed: int
) -> Windows:
    """Random passages of `part` (validation or held_out), as many from each domain."""
    return whole_windows(
        _streams(domains, part, tokenizer),
        range(len(domains)),
        num_per_domain=num_per_domain,
        length=WINDOW_TOKENS,
        min_tokens=MIN_TOKENS,
        seed=seed,
    )


def half_way_windows(
    domains: Sequence[DomainText], part: str, tokenizer: Tokenizer, *, num_documents: int, seed: int
) -> Windows:
    """128 tokens of one domain, then 128 of another; all ordered pairs of domains in turn."""
    streams = _streams(domains, part, tokenizer)
    return switching_windows(streams, range(len(domains)), num_documents=num_documents, half=SWITCH_AT, seed=seed)


def _streams(domains: Sequence[DomainText], part: str, tokenizer: Tokenizer) -> list[list[list[int]]]:
    return [tokenizer.encode_batch(list(getattr(domain, part))) for domain in domains]
