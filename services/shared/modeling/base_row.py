"""The base model's own row of a gate: text that it writes itself, sampled at temperature 1. No corpus needed."""

import math
from collections.abc import Collection
from typing import Final

import torch
from transformers import PreTrainedModel

from services.shared.tokenizer import Tokenizer

_BATCH: Final = 256
LONGEST_TEXT: Final = 256


@torch.inference_mode()
def sample_base_text(model: PreTrainedModel, tokenizer: Tokenizer, *, num_tokens: int, seed: int) -> list[list[int]]:
    """Documents of token ids that the model writes at temperature 1, at least `num_tokens` tokens together.

    Each begins with the beginning-of-text token (or, where there is none, the end-of-text one) and ends before an
    end-of-text token or after 256 tokens. The same seed gives the same text on the same machine.
    """
    generator = torch.Generator().manual_seed(seed)
    start_id = _start_id(tokenizer)
    longest = min(LONGEST_TEXT, tokenizer.max_context or LONGEST_TEXT)
    texts: list[list[int]] = []
    num_sampled = 0
    while num_sampled < num_tokens:
        mean_length = num_sampled / len(texts) if texts else longest
        size = min(_BATCH, math.ceil((num_tokens - num_sampled) / mean_length))
        batch = _sample_batch(model, start_id, size, longest, tokenizer.eos_ids, generator)
        texts.extend(batch)
        num_sampled += sum(len(text) for text in batch)
    return texts


def _sample_batch(
    model: PreTrainedModel, start_id: int, size: int, longest: int, end_ids: Collection[int], generator: torch.Generator
) -> list[list[int]]:
    """`size` continuations of the start token. Texts that have ended leave the batch when they are half of it: a few
    long ones would otherwise be written at the price of all."""
    texts = [[start_id] for _ in range(size)]
    ends = torch.tensor(sorted(end_ids), dtype=torch.long)
    text_of_B, goes_on_B = torch.arange(size), torch.ones(size, dtype=torch.bool)
    next_B1, cache = torch.full((size, 1), start_id), None
    for _ in range(longest - 1):
        output = model(input_ids=next_B1.to(model.device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        probabilities_BV = output.logits[:, -1].float().softmax(dim=-1).cpu()
        next_B1 = torch.multinomial(probabilities_BV, 1, generator=generator)
        goes_on_B &= ~torch.isin(next_B1[:, 0], ends)
        for text, token_id in zip(text_of_B[goes_on_B].tolist(), next_B1[goes_on_B, 0].tolist(), strict=True):
            texts[text].append(token_id)
        if not goes_on_B.any():
            break
        if 2 * goes_on_B.sum() <= len(goes_on_B):
            cache.batch_select_indices(goes_on_B.nonzero()[:, 0].to(model.device))
            text_of_B, next_B1, goes_on_B = text_of_B[goes_on_B], next_B1[goes_on_B], goes_on_B[goes_on_B]
    return texts


def _start_id(tokenizer: Tokenizer) -> int:
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    return min(tokenizer.eos_ids, default=0)
