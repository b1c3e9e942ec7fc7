"""A figure beside what it would be without the effect that it is to show."""

from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

Number = float | None
"""None where there is nothing to divide by, or nothing to draw from."""

Shape = TypeVar("Shape")


class NullMethod(StrEnum):
    """How it was found what a figure would be without the effect."""

    PERMUTED_DOMAINS = "permuted_domains"
    """Domains dealt out anew among the sequences."""
    SHUFFLED_TOKENS = "shuffled_tokens"
    """Tokens in another order within their sequence, each with all its experts."""
    POPULARITY = "popularity"
    """Every choice made for itself, by the experts' shares alone."""
    UNIFORM = "uniform"
    """Every choice made for itself, all experts alike."""


class Frozen(BaseModel):
    """What was found stays as it was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimated(Frozen, Generic[Shape]):
    """One number, a series or a matrix of them: what is not known is null as a whole or in its place."""

    value: Shape = Field(description="As it is counted.")
    corrected: Shape | None = Field(
        default=None, description="Less what so few sequences add by chance; the interval is of this where it is there."
    )
    low: Shape | None = Field(default=None, description="95 % interval, drawn over sequences within their domain.")
    high: Shape | None = None
    null: Shape | None = Field(default=None, description="What `value` would be without the effect.")
    null_low: Shape | None = Field(default=None, description="Where 95 % of values without the effect lie.")
    null_high: Shape | None = None
    null_method: NullMethod | None = None
    p_value: Shape | None = None
    q_value: Shape | None = Field(
        default=None, description="Benjamini and Hochberg's: over layers of one number, over its cells of the others."
    )


Estimate = Estimated[Number]
Series = Estimated[tuple[Number, ...]]
Matrix = Estimated[tuple[tuple[Number, ...], ...]]


def number(value: float) -> Number:
    """To six digits; None for what is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def numbers(values: ArrayLike) -> tuple[Number, ...]:
    """[n] as JSON can hold it."""
    return tuple(number(value) for value in np.asarray(values, dtype=np.float64))


def rows(values: NDArray[np.float64]) -> tuple[tuple[Number, ...], ...]:
    """[m, n] as JSON can hold it."""
    return tuple(numbers(row) for row in values)
