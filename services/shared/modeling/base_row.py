"""The base model's own row of a gate: text that it writes itself, sampled at temperature 1. No corpus needed."""

from collections.abc import Collection
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from services.shared.tokenizer import Tokenizer

_BATCH: Final = 64
_LONGEST_TEXT: Final = 256


@torch.inference_mode()
def sample_base_text(model: PreTrainedModel, tokenizer: Tokenizer, *, num_tokens: int, seed: int) -> list[list[int]]:
    """Documents of token ids that the model writes at temperature 1, at least `num_tokens` tokens together.

    Each begins with the beginning-of-text token (or, where there is none, the end-of-text one) and ends before an
    end-of-text token or after 256 tokens. The same seed gives the same text on the same machine.
    """
    generator = torch.Generator().manual_seed(seed)
    start_id = _start_id(tokenizer)
    longest = min(_LONGEST_TEXT, tokenizer.max_context or _LONGEST_TEXT)
    texts: list[list[int]] = []
    num_sampled = 0
    while num_sampled < num_tokens:
        batch_BT = _sample_batch(model, start_id, longest, tokenizer.eos_ids, generator)
        for ids in batch_BT.tolist():
            text = _until_end(ids, tokenizer.eos_ids)
            texts.append(text)
            num_sampled += len(text)
    return texts


def _sample_batch(
    model: PreTrainedModel, start_id: int, length: int, end_ids: Collection[int], generator: torch.Generator
) -> Tensor:
    """ids_BT of continuations of the start token; rows go on after an end of text, which the caller cuts.

    Once all rows have ended, tokens are drawn without asking the model: nobody reads them, but the generator is left
    where it would be, so that the next batch is what it always was.
    """
    next_B1 = torch.full((_BATCH, 1), start_id, device=model.device)
    ids, cache = [next_B1.cpu()], None
    ends = torch.tensor(sorted(end_ids), dtype=torch.long)
    has_ended_B1 = torch.zeros(_BATCH, 1, dtype=torch.bool)
    probabilities_BV = torch.empty(0)
    for _ in range(length - 1):
        if not has_ended_B1.all():
            output = model(input_ids=next_B1, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities_BV = output.logits[:, -1].float().softmax(dim=-1).cpu()
        sampled_B1 = torch.multinomial(probabilities_BV, 1, generator=generator)
        has_ended_B1 |= torch.isin(sampled_B1, ends)
        ids.append(sampled_B1)
        next_B1 = sampled_B1.to(model.device)
    return torch.cat(ids, dim=1)


def _start_id(tokenizer: Tokenizer) -> int:
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    return min(tokenizer.eos_ids, default=0)


def _until_end(ids: list[int], end_ids: frozenset[int]) -> list[int]:
    ends = (position for position, token_id in enumerate(ids) if position > 0 and token_id in end_ids)
    return ids[: next(ends, len(ids))]
