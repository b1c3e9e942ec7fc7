"""Examples as documents to be read: which tokens count, and which of them are a checkable answer.

Shape letters: B documents, T tokens, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoTokenizer

from services.shared.modeling.base_model import LoadedBase
from services.shared.training_text import Example
from services.trainer_worker.datasets import Document, tokenise
from services.trainer_worker.evaluation.windows import Windows, padded

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Documents:
    """Documents of several groups, by name. Of the T-1 predicted tokens, `counted_BT` are those whose loss counts and
    `answer_BT` those of the completion; `is_checkable_B` are documents that end in one and were not cut."""

    windows: Windows
    counted_BT: Mask
    answer_BT: Mask
    is_checkable_B: Mask
    groups: tuple[str, ...]
    groups_B: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        examples: Mapping[str, Sequence[Example]],
        base: LoadedBase,
        *,
        max_length: int,
        completion_only: bool = False,
        are_whole: bool = True,
    ) -> "Documents":
        """Framed as in training and cut at `max_length` tokens; with `completion_only` prompts are not counted, and
        unless they `are_whole` the end of text is not expected."""
        tokenizer = AutoTokenizer.from_pretrained(base.name)
        max_length = min(max_length, base.max_context)
        every = [example for group in examples.values() for example in group]
        framed = tokenise(every, tokenizer, completion_only=completion_only)
        if not are_whole:
            framed = [_without_end(document, tokenizer.eos_token_id) for document in framed]
        answers = tokenise(every, tokenizer, completion_only=True)
        rows = [torch.from_numpy(document.token_ids_T[:max_length]) for document in framed]
        groups = [index for index, group in enumerate(examples.values()) for _ in group]
        columns = [torch.full_like(row, index) for row, index in zip(rows, groups, strict=True)]
        windows = padded(rows, columns, switch_at=None)
        fits = [len(document.token_ids_T) <= max_length for document in framed]
        return cls(
            windows=windows,
            counted_BT=_learned(framed, windows),
            answer_BT=_learned(answers, windows),
            is_checkable_B=np.array([_ends_in_answer(one) and fit for one, fit in zip(every, fits, strict=True)]),
            groups=tuple(examples),
            groups_B=np.array(groups, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.windows)

    def of_group(self, group: str) -> Mask:
        """Which documents are of the group, [B]."""
        mask_B: Mask = self.groups_B == self.groups.index(group)
        return mask_B

    def token_ids(self, part: slice) -> Tensor:
        """Of some of the documents, as short as they allow."""
        longest = int(self.windows.lengths_B[part].max())
        return self.windows.token_ids_BT[part, :longest]


def _without_end(document: Document, end: int | None) -> Document:
    if end is None or document.token_ids_T[-1] != end:
        return document
    return Document(document.token_ids_T[:-1], document.learned_T[:-1])


def _learned(documents: Sequence[Document], windows: Windows) -> Mask:
    counted_BT = np.zeros(windows.token_ids_BT.shape, dtype=np.bool_)
    for row, (document, length) in enumerate(zip(documents, windows.lengths_B.tolist(), strict=True)):
        counted_BT[row, :length] = document.learned_T[:length]
    return counted_BT[:, 1:]


def _ends_in_answer(example: Example) -> bool:
    spans = example.completions
    return spans is not None and len(spans) == 1 and spans[0][0] > 0 and spans[0][1] == len(example.text)
