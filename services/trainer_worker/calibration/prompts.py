"""Held-out documents cut into a prompt, which is assessed, and what follows it, which is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from services.shared.errors import InvalidDataset
from services.trainer_worker.evaluation.windows import Windows


@dataclass(frozen=True)
class CutText:
    """One document: the first `cut` of its tokens are the prompt."""

    token_ids: tuple[int, ...]
    cut: int


@dataclass(frozen=True)
class Prompts:
    """Documents in rows, B of them; `cuts_B` are the lengths of their prompts."""

    windows: Windows
    cuts_B: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Mapping[int, Sequence[CutText]]) -> "Prompts":
        """Of texts by the column of their domain. Raises InvalidDataset where there is none."""
        rows = [(column, text) for column, several in texts.items() for text in several]
        if not rows:
            raise InvalidDataset("None of the held-out documents is long enough to be cut in two.", param="held_out")
        ids = [torch.tensor(text.token_ids) for _, text in rows]
        columns = [torch.full((len(text.token_ids),), column) for column, text in rows]
        windows = Windows(
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            torch.tensor([len(text.token_ids) for _, text in rows]),
            torch.nn.utils.rnn.pad_sequence(columns, batch_first=True),
        )
        return cls(windows, np.array([text.cut for _, text in rows]))

    def __len__(self) -> int:
        return len(self.cuts_B)

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """Of the domain of each document."""
        return self.windows.first_domains

    def prompt_loss(self, nats_BT: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Mean nats per predicted token of each prompt, [B]."""
        return self._mean(nats_BT, before_cut=True)

    def continuation_loss(self, nats_BT: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Mean nats per token of what follows each prompt, [B]."""
        return self._mean(nats_BT, before_cut=False)

    def _mean(self, nats_BT: npt.NDArray[np.floating], *, before_cut: bool) -> npt.NDArray[np.float64]:
        positions_T = np.arange(1, nats_BT.shape[1] + 1)
        is_prompt_BT = positions_T < self.cuts_B[:, None]
        counted_BT = self.windows.counted & (is_prompt_BT if before_cut else ~is_prompt_BT)
        means: npt.NDArray[np.float64] = (nats_BT * counted_BT).sum(axis=1) / counted_BT.sum(axis=1)
        return means
