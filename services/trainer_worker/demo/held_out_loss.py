"""Loss on held-out items in nats per token: of the completion given its prompt, and of the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from services.trainer_worker.demo.domains import Item

_BATCH_SIZE = 25
_IGNORED = -100


@dataclass(frozen=True)
class HeldOutLoss:
    """Means over all tokens of all items, in nats per token."""

    completion: float
    text: float


@dataclass(frozen=True)
class _Encoded:
    token_ids: list[int]
    num_prompt_tokens: int


def _encode(tokenizer: PreTrainedTokenizerBase, item: Item) -> _Encoded:
    prompt_ids: list[int] = tokenizer(item.prompt)["input_ids"]
    completion_ids: list[int] = tokenizer(item.completion, add_special_tokens=False)["input_ids"]
    return _Encoded([*prompt_ids, *completion_ids, tokenizer.eos_token_id], len(prompt_ids))


def held_out_loss(model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> HeldOutLoss:
    """The model's loss on the items, `<eos>` included."""
    encoded = sorted((_encode(tokenizer, item) for item in items), key=lambda document: len(document.token_ids))
    completion_sum = text_sum = 0.0
    num_completion = num_text = 0
    for start in range(0, len(encoded), _BATCH_SIZE):
        batch = encoded[start : start + _BATCH_SIZE]
        losses_BT, counted_BT = _token_losses(model, batch)
        starts_B1 = torch.tensor([[document.num_prompt_tokens - 1] for document in batch])
        in_completion_BT = counted_BT & (torch.arange(losses_BT.shape[1]) >= starts_B1)
        completion_sum += float(losses_BT[in_completion_BT].sum())
        text_sum += float(losses_BT[counted_BT].sum())
        num_completion += int(in_completion_BT.sum())
        num_text += int(counted_BT.sum())
    return HeldOutLoss(completion=completion_sum / num_completion, text=text_sum / num_text)


def _token_losses(model: nn.Module, batch: Sequence[_Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of predicting each next token, and which of them are real: both [B, T-1], padded on the right."""
    longest = max(len(document.token_ids) for document in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    labels_BT = torch.full((len(batch), longest), _IGNORED)
    for row, document in enumerate(batch):
        tokens = torch.tensor(document.token_ids)
        ids_BT[row, : len(tokens)] = tokens
        labels_BT[row, : len(tokens)] = tokens
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT).logits[:, :-1].float()
    targets_BT = labels_BT[:, 1:]
    losses_BT = nn.functional.cross_entropy(
        logits_BTV.transpose(1, 2), targets_BT, reduction="none", ignore_index=_IGNORED
    )
    return losses_BT, targets_BT != _IGNORED
