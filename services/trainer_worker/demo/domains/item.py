"""What every domain deals in: checkable items, and the rule that keeps training and held-out items apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "validation", "held_out"]

_BUCKETS = 10
_SPLIT_OF_BUCKET: Mapping[int, Split] = {8: "validation", 9: "held_out"}
_MAX_FRUITLESS_DRAWS = 5_000


class TooFewDistinctItems(ValueError):
    """A domain was asked for more distinct held-out prompts than it can write."""


@dataclass(frozen=True)
class Item:
    """One prompt with the completion that an expert should write, and what is needed to verify another one."""

    prompt: str
    completion: str
    check: Mapping[str, Any]
    template: str  # which rule wrote it: lets tests count how varied a domain is

    @property
    def text(self) -> str:
        """The prompt and its completion as one document."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Domain:
    """A named kind of text with checkable items; `in_demo` is false for domains kept from base and experts."""

    name: str
    description: str
    compose: Callable[[random.Random], Item]
    is_correct: Callable[[Item, str], bool]
    in_demo: bool

    def generate(self, seed: int, count: int, split: Split) -> list[Item]:
        """Write `count` items of one split: the same for the same arguments, and never a prompt of another split.

        Prompts are distinct outside training; in training they may repeat, as facts must.
        """
        rng = random.Random(f"{self.name}/{split}/{seed}")
        items: list[Item] = []
        seen: set[str] = set()
        fruitless_draws = 0
        while len(items) < count:
            fruitless_draws += 1
            if fruitless_draws > _MAX_FRUITLESS_DRAWS:
                raise TooFewDistinctItems(f"{self.name} has fewer than {count} distinct {split} prompts: ask for fewer")
            item = self.compose(rng)
            if split_of(item.prompt) != split:
                continue
            if split != "train" and item.prompt in seen:
                continue
            seen.add(item.prompt)
            items.append(item)
            fruitless_draws = 0
        return items


def split_of(prompt: str) -> Split:
    """The one split in which a prompt may appear: a function of its text alone, so that splits cannot overlap."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return _SPLIT_OF_BUCKET.get(int.from_bytes(digest, "big") % _BUCKETS, "train")


def first_line(answer: str) -> str:
    """The first line of an answer that says something, without surrounding blanks."""
    return next((line.strip() for line in answer.splitlines() if line.strip()), "")


def ends_with_value(answer: str, value: str) -> bool:
    """Whether the answer's first line ends in the expected value, as whole words and whatever the case."""
    words = first_line(answer).rstrip(".!").casefold().split()
    expected = value.casefold().split()
    return bool(expected) and words[-len(expected) :] == expected
