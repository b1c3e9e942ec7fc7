"""Batched greedy answers to checkable items, and how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from services.trainer_worker.demo.domains import Domain, Item

BATCH_SIZE = 50
_SPARE_TOKENS = 8  # room for an answer a little longer than the reference


def answer_greedily(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], *, batch_size: int = BATCH_SIZE
) -> list[str]:
    """The model's greedy continuation of every prompt, up to `<eos>` or a little past the reference's length."""
    answers = [""] * len(items)
    longest = max(len(tokenizer(item.completion)["input_ids"]) for item in items)
    by_length = sorted(range(len(items)), key=lambda index: len(items[index].prompt))
    for start in range(0, len(items), batch_size):
        chosen = by_length[start : start + batch_size]
        prompts = tokenizer([items[index].prompt for index in chosen], return_tensors="pt", padding=True)
        with torch.inference_mode():
            output_BT = model.generate(  # type: ignore[operator]  # PEFT and transformers models both have it
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                max_new_tokens=longest + _SPARE_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        prompt_length = prompts["input_ids"].shape[1]
        texts = tokenizer.batch_decode(output_BT[:, prompt_length:], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


def exact_matches(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, domain: Domain, items: Sequence[Item]
) -> list[bool]:
    """For every item, whether the greedy answer is right."""
    answers = answer_greedily(model, tokenizer, items)
    return [domain.is_correct(item, answer) for item, answer in zip(items, answers, strict=True)]
