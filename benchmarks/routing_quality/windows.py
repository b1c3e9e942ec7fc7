"""Held-out windows: documents of one domain, and documents that switch their domain half-way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.routing_quality.texts import DomainText
from services.shared.tokenizer import Tokenizer

WINDOW_TOKENS = 256
SWITCH_AT = 128
MIN_TOKENS = 64
AFTER_SWITCH = 16


@dataclass(frozen=True)
class Windows:
    """Token ids padded to the longest, `lengths_B`, and the domain of every token, `domains_BT` (indices)."""

    token_ids_BT: Tensor
    lengths_B: Tensor
    domains_BT: Tensor

    def __len__(self) -> int:
        return len(self.lengths_B)

    @property
    def counted(self) -> np.ndarray:
        """Which of the T-1 predicted tokens are text, [B, T-1]."""
        positions_T = torch.arange(1, self.token_ids_BT.shape[1])
        return (positions_T < self.lengths_B[:, None]).numpy()

    @property
    def first_domains(self) -> np.ndarray:
        """The domain each window begins with, [B]."""
        return self.domains_BT[:, 0].numpy()


def pure_windows(
    domains: Sequence[DomainText], part: str, tokenizer: Tokenizer, *, num_per_domain: int, seed: int
) -> Windows:
    """Random passages of `part` (validation or held_out), as many from each domain."""
    rows, labels = [], []
    for index, domain in enumerate(domains):
        for ids in _draw(getattr(domain, part), tokenizer, num=num_per_domain, min_tokens=MIN_TOKENS, seed=seed):
            rows.append(torch.tensor(ids[:WINDOW_TOKENS]))
            labels.append(torch.full((len(rows[-1]),), index))
    return _padded(rows, labels)


def switching_windows(
    domains: Sequence[DomainText], part: str, tokenizer: Tokenizer, *, num_documents: int, seed: int
) -> Windows:
    """128 tokens of one domain, then 128 of another; all ordered pairs of domains in turn."""
    halves = [
        _draw(getattr(domain, part), tokenizer, num=num_documents, min_tokens=SWITCH_AT + 1, seed=seed + 1)
        for domain in domains
    ]
    pairs = [(a, b) for a in range(len(domains)) for b in range(len(domains)) if a != b]
    rows, labels = [], []
    for number in range(num_documents):
        first, second = pairs[number % len(pairs)]
        pick = np.random.default_rng([seed, number]).integers(len(halves[first]), size=2)
        first_ids = halves[first][pick[0] % len(halves[first])][:SWITCH_AT]
        second_ids = halves[second][pick[1] % len(halves[second])][1 : SWITCH_AT + 1]  # without its beginning-of-text
        rows.append(torch.tensor([*first_ids, *second_ids]))
        labels.append(torch.tensor([first] * len(first_ids) + [second] * len(second_ids)))
    return _padded(rows, labels)


def _draw(passages: Sequence[str], tokenizer: Tokenizer, *, num: int, min_tokens: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(len(passages))
    drawn: list[list[int]] = []
    for index in order:
        ids = tokenizer.encode(passages[index])
        if len(ids) >= min_tokens:
            drawn.append(ids)
        if len(drawn) == num:
            break
    return drawn


def _padded(rows: Sequence[Tensor], labels: Sequence[Tensor]) -> Windows:
    return Windows(
        torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True),
        torch.tensor([len(row) for row in rows]),
        torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True),
    )
