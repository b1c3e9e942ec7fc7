"""Training text for routers: documents that change their domain half-way, with the expert each token belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from services.shared.errors import InvalidDataset

_SHARE_UNSPLICED: Final = 0.5


@dataclass(frozen=True)
class SplicedBatch:
    """`token_ids_BT` and, for each token, the column of the gate that its text belongs to, `columns_BT`."""

    token_ids_BT: Tensor
    columns_BT: Tensor

    @property
    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """One (ids, columns) pair per document."""
        return list(zip(self.token_ids_BT, self.columns_BT, strict=True))


class DocumentSplicer:
    """Draws windows of `length` tokens: half from one column's text, half from two columns' with a switch between."""

    def __init__(self, streams_by_column: Sequence[Sequence[Sequence[int]]], *, length: int, seed: int) -> None:
        """`streams_by_column[c]` are column c's documents. Raises InvalidDataset for a column without text."""
        self._texts = [_joined(streams) for streams in streams_by_column]
        if any(len(text) < 2 for text in self._texts):
            raise InvalidDataset("Every expert of a learned router needs some text of its own.", param="training_files")
        self._length = length
        self._generator = np.random.default_rng(seed)

    @property
    def state(self) -> dict[str, Any]:
        """What decides the documents to come; JSON."""
        return dict(self._generator.bit_generator.state)

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = state

    def draw(self, num_documents: int) -> SplicedBatch:
        """The next documents; which, is a function of the seed and of how many were drawn before."""
        pieces = [self._document() for _ in range(num_documents)]
        return SplicedBatch(
            torch.from_numpy(np.stack([ids for ids, _ in pieces])),
            torch.from_numpy(np.stack([columns for _, columns in pieces])),
        )

    def _document(self) -> tuple[np.ndarray, np.ndarray]:
        first, second = self._generator.integers(len(self._texts), size=2)
        is_whole = self._generator.random() < _SHARE_UNSPLICED
        switch = (
            self._length if is_whole else int(self._generator.integers(self._length // 4, 3 * self._length // 4 + 1))
        )
        ids = np.concatenate([self._window(int(first), switch), self._window(int(second), self._length - switch)])
        columns = np.repeat([first, second], [switch, self._length - switch])
        return ids, columns

    def _window(self, column: int, length: int) -> np.ndarray:
        text = self._texts[column]
        start = int(self._generator.integers(len(text)))
        # Short texts go round in circles rather than leave a hole.
        return np.take(text, np.arange(start, start + length), mode="wrap")


def split_streams(
    streams: Mapping[str, Sequence[Sequence[int]]], *, held_out: float, seed: int
) -> tuple[dict[str, list[Sequence[int]]], dict[str, list[Sequence[int]]]]:
    """Training and held-out documents per name; of a single document, the end is held out."""
    train: dict[str, list[Sequence[int]]] = {}
    test: dict[str, list[Sequence[int]]] = {}
    for name, documents in streams.items():
        if len(documents) == 1:
            cut = int(len(documents[0]) * (1 - held_out))
            train[name], test[name] = [documents[0][:cut]], [documents[0][cut:]]
            continue
        order = np.random.default_rng(seed).permutation(len(documents))
        num_test = max(1, round(held_out * len(documents)))
        test[name] = [documents[int(index)] for index in order[:num_test]]
        train[name] = [documents[int(index)] for index in order[num_test:]]
    return train, test


def _joined(streams: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.asarray(stream, dtype=np.int64) for stream in streams] or [np.empty(0, dtype=np.int64)])
