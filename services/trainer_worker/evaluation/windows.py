"""Held-out documents as rows of tokens: whole ones of one domain, and such that switch their domain half-way."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from services.shared.errors import InvalidDataset

AFTER_SWITCH: Final = 16
_LEAST_HALF: Final = AFTER_SWITCH

Streams = Sequence[Sequence[int]]
"""Documents of one domain, tokenised."""


@dataclass(frozen=True)
class Windows:
    """Token ids padded to the longest, `lengths_B`, and the column of every token's own expert, `domains_BT`.

    `switch_at` is the position of the second domain's first token; None where documents do not switch.
    """

    token_ids_BT: Tensor
    lengths_B: Tensor
    domains_BT: Tensor
    switch_at: int | None = None

    def __len__(self) -> int:
        return len(self.lengths_B)

    @property
    def counted(self) -> np.ndarray:
        """Which of the T-1 predicted tokens are text, [B, T-1]."""
        positions_T = torch.arange(1, self.token_ids_BT.shape[1])
        return (positions_T < self.lengths_B[:, None]).numpy()

    @property
    def first_domains(self) -> np.ndarray:
        """The column of the domain that each window begins with, [B]."""
        return self.domains_BT[:, 0].numpy()

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens: equal for equal documents."""
        content = hashlib.sha256(repr(tuple(self.token_ids_BT.shape)).encode())
        for tensor in (self.token_ids_BT, self.lengths_B):
            content.update(tensor.numpy().tobytes())
        return content.hexdigest()


def whole_windows(
    streams: Sequence[Streams],
    columns: Sequence[int],
    *,
    num_per_domain: int,
    length: int,
    min_tokens: int = 2,
    seed: int,
) -> Windows:
    """Random documents from their beginning, at most `num_per_domain` of each domain; `columns` are the domains'."""
    rows, labels = [], []
    for documents, column in zip(streams, columns, strict=True):
        for ids in _draw(documents, num=num_per_domain, min_tokens=min_tokens, seed=seed):
            rows.append(torch.tensor(ids[:length]))
            labels.append(torch.full((len(rows[-1]),), column))
    if not rows:
        raise InvalidDataset(f"None of the held-out documents has {min_tokens} tokens.", param="held_out")
    return padded(rows, labels, switch_at=None)


def switching_windows(
    streams: Sequence[Streams], columns: Sequence[int], *, num_documents: int, half: int, seed: int
) -> Windows:
    """`half` tokens of one domain, then as many of another; all ordered pairs of domains in turn.

    A domain whose documents are all shorter has them joined; one with less text than that makes all halves shorter.
    Raises InvalidDataset for a domain with less than 17 tokens.
    """
    half = min(half, *(sum(map(len, documents)) - 1 for documents in streams))
    if half < _LEAST_HALF:
        raise InvalidDataset(
            f"Every domain needs at least {_LEAST_HALF + 1} tokens of held-out text for documents that switch.",
            param="held_out",
        )
    halves = [
        _draw(_longer(documents, half), num=num_documents, min_tokens=half + 1, seed=seed + 1) for documents in streams
    ]
    pairs = [(a, b) for a in range(len(halves)) for b in range(len(halves)) if a != b]
    rows, labels = [], []
    for number in range(num_documents):
        first, second = pairs[number % len(pairs)]
        pick = np.random.default_rng([seed, number]).integers(len(halves[first]), size=2)
        first_ids = halves[first][pick[0] % len(halves[first])][:half]
        second_ids = halves[second][pick[1] % len(halves[second])][1 : half + 1]  # without its beginning-of-text
        rows.append(torch.tensor([*first_ids, *second_ids]))
        labels.append(torch.tensor([columns[first]] * half + [columns[second]] * half))
    return padded(rows, labels, switch_at=half)


def _longer(documents: Streams, half: int) -> Streams:
    """Those with more than `half` tokens; if there is none, documents joined until they have."""
    long_enough = [document for document in documents if len(document) > half]
    if long_enough:
        return long_enough
    joined: list[list[int]] = [[]]
    for document in documents:
        if len(joined[-1]) > half:
            joined.append([])
        joined[-1].extend(document)
    return joined


def _draw(documents: Streams, *, num: int, min_tokens: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(len(documents))
    drawn: list[list[int]] = []
    for index in order:
        if len(documents[index]) >= min_tokens:
            drawn.append(list(documents[index]))
        if len(drawn) == num:
            break
    return drawn


def padded(rows: Sequence[Tensor], labels: Sequence[Tensor], *, switch_at: int | None) -> Windows:
    """Windows of these token ids and of the column of every token's own expert."""
    return Windows(
        torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True),
        torch.tensor([len(row) for row in rows]),
        torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True),
        switch_at,
    )
