"""Two toy experts, one of words and one of sums, on a base model small enough to train in a blink."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.shared.modeling.base_model import LoadedBase
from services.shared.training_text import Example


def words(seed: int) -> str:
    generator = np.random.default_rng(seed)
    return " ".join(generator.choice(["moon", "tree", "river", "stone", "cloud"], size=14))


def sums(seed: int) -> str:
    numbers = np.random.default_rng(seed).integers(10, 50, size=(7, 2))
    return "\n".join(f"{a}+{b}={a + b}" for a, b in numbers)


@dataclass(frozen=True)
class Toys:
    """The tiny base with two trained experts that carry their evidence."""

    base: LoadedBase
    experts: list[tuple[str, Path]]
    texts: Mapping[str, Sequence[Example]]
