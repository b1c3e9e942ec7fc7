"""Training files: a domain's items as JSON lines of `prompt` and `completion`, as expert jobs read them."""

from __future__ import annotations

import json
from pathlib import Path

from services.trainer_worker.demo.domains import DOMAINS, Split


class UnknownDomain(ValueError):
    """No generator has that name."""


def write_dataset(domain: str, split: Split, count: int, seed: int, path: Path) -> None:
    """Write `count` items of a domain's split to `path`: the same bytes for the same arguments."""
    if domain not in DOMAINS:
        raise UnknownDomain(f"unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}")
    items = DOMAINS[domain].generate(seed, count, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as lines:
        for item in items:
            lines.write(json.dumps({"prompt": item.prompt, "completion": item.completion}, ensure_ascii=False) + "\n")
