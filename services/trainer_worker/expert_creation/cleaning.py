"""What of the examples may be learned: each once, and none that anything is measured on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.shared.training_text import Example, text_digest
from services.trainer_worker.expert_creation.near_duplicates import like_any, near_duplicates

_TELLING_CHARACTERS: Final = 24
"""Shorter prompts may begin anything."""


@dataclass(frozen=True)
class Cleaned:
    """Those that are kept, in their order, and how many were dropped, by reason."""

    kept: tuple[Example, ...]
    dropped: Counter[str]


def clean(examples: Sequence[Example], evaluation_texts: Sequence[str]) -> Cleaned:
    """Drop what repeats an earlier example, or is like a text of an evaluation: equal to it, nearly, or its beginning.

    A prompt alone gives an evaluation's document away as well, so examples whose prompt begins one are dropped too.
    """
    dropped: Counter[str] = Counter()
    once: dict[int, Example] = {}
    for example in examples:
        digest = text_digest(example.text)
        dropped["duplicate"] += digest in once
        once.setdefault(digest, example)
    apart = _without_evaluated(list(once.values()), evaluation_texts)
    dropped["contaminated"] = len(once) - len(apart)
    is_repeated_N = near_duplicates([example.text for example in apart])
    dropped["near_duplicate"] = int(is_repeated_N.sum())
    kept = tuple(example for example, is_repeated in zip(apart, is_repeated_N, strict=True) if not is_repeated)
    return Cleaned(kept, +dropped)


def prompt_of(example: Example) -> str:
    """What stands before the first completion; all of a text without one."""
    return example.text[: example.completions[0][0]] if example.completions else example.text


def _without_evaluated(examples: Sequence[Example], evaluation_texts: Sequence[str]) -> list[Example]:
    if not evaluation_texts:
        return list(examples)
    prompts = [prompt_of(example).strip() for example in examples]
    # Prompts of one file are alike in length, so few lengths make all beginnings that can be asked for.
    lengths = {len(prompt) for prompt in prompts if len(prompt) >= _TELLING_CHARACTERS}
    begins = {text_digest(text.lstrip()[:length]) for text in evaluation_texts for length in lengths}
    is_like_N = like_any([example.text for example in examples], evaluation_texts)
    return [
        example
        for example, prompt, is_like in zip(examples, prompts, is_like_N, strict=True)
        if not is_like and not (len(prompt) in lengths and text_digest(prompt) in begins)
    ]
