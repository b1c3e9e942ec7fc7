"""Which held-out text belongs to which expert."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.shared.errors import InvalidRequest
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.trainer_worker.evaluation.windows import Streams


@dataclass(frozen=True)
class HeldOutText:
    """Tokenised documents by domain, in the order of the gate's columns; `columns` are those of their experts."""

    domains: tuple[str, ...]
    columns: tuple[int, ...]
    streams: tuple[Streams, ...]
    unknown: Streams | None


def columns_of(
    domains: Sequence[str], experts: Sequence[tuple[str, str | None]], *, field: str = "held_out"
) -> dict[str, int]:
    """The column of each domain's expert, in the order of the columns; `experts` are (name, domain).

    A domain is an expert's name, or else the domain of exactly one. Raises InvalidRequest for any other, and for two
    that mean the same expert, with the name of the `field`.
    """
    columns = {domain: _column(domain, experts, field) for domain in domains}
    by_column: dict[int, str] = {}
    for domain, column in columns.items():
        if (other := by_column.setdefault(column, domain)) != domain:
            raise InvalidRequest(
                f"{other!r} and {domain!r} both mean the expert {experts[column][0]!r}: put their text in one file.",
                param=f"{field}.{domain}",
            )
    return {by_column[column]: column for column in sorted(by_column)}


def in_order(columns: Mapping[str, int], streams: Mapping[str, Streams], unknown: Streams | None) -> HeldOutText:
    """The documents in the order of the columns."""
    return HeldOutText(
        domains=tuple(columns),
        columns=tuple(columns.values()),
        streams=tuple(streams[domain] for domain in columns),
        unknown=unknown,
    )


def documents_name(digests: Mapping[str, str], domains: Sequence[str], spec: EvaluationJobSpec) -> str:
    """The name of drawn documents, `digests` by seed: losses are compared only where every token read was the same."""
    digest = hashlib.sha256(json.dumps([dict(digests), list(domains)]).encode()).hexdigest()
    return (
        f"held-out text {digest[:16]}: up to {spec.max_documents} documents per domain of up to {spec.max_tokens} "
        f"tokens, seeds {', '.join(map(str, spec.seeds))}"
    )[:200]


def _column(domain: str, experts: Sequence[tuple[str, str | None]], field: str) -> int:
    names = [name for name, _ in experts]
    if domain in names:
        return names.index(domain)
    meant = [column for column, (_, its_domain) in enumerate(experts) if its_domain == domain]
    if len(meant) == 1:
        return meant[0]
    if meant:
        several = ", ".join(names[column] for column in meant)
        raise InvalidRequest(
            f"Several experts have the domain {domain!r}: name one of {several} instead.", param=f"{field}.{domain}"
        )
    raise InvalidRequest(
        f"No expert of the release is named {domain!r} or has that domain. Its experts: {', '.join(names)}."
        + (" Text of no expert goes under unknown_file." if field == "held_out" else ""),
        param=f"{field}.{domain}",
    )
