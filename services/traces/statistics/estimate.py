"""A figure beside what it would be without the effect that it is to show."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

Number = float | None
"""None where there is nothing to divide by, or nothing to draw from."""

Shape = TypeVar("Shape")
Kind = TypeVar("Kind")


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


class Estimate(Estimated[Number]):
    """One number."""


class Series(Estimated[tuple[Number, ...]]):
    """A number each of several things."""


class Matrix(Estimated[tuple[tuple[Number, ...], ...]]):
    """Rows of numbers."""


@dataclass(frozen=True)
class Bounds:
    """An interval and the value that it is of, where that is not the counted one; arrays of one shape, or scalars."""

    low: ArrayLike
    high: ArrayLike
    corrected: ArrayLike | None = None


@dataclass(frozen=True)
class Null:
    """Without the effect: mean, where 95 % lie, and how likely it is to be as far off as what was counted."""

    method: NullMethod
    value: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    p_value: ArrayLike | None = None
    q_value: ArrayLike | None = None


def number(value: ArrayLike) -> Number:
    """To six digits; None for what is not finite."""
    exact = float(np.asarray(value))
    return float(f"{exact:.6g}") if np.isfinite(exact) else None


def numbers(values: ArrayLike) -> tuple[Number, ...]:
    """[n] as JSON can hold it."""
    return tuple(number(value) for value in np.asarray(values, dtype=np.float64).tolist())


def rows(values: ArrayLike) -> tuple[tuple[Number, ...], ...]:
    """[m, n] as JSON can hold it."""
    return tuple(numbers(row) for row in np.asarray(values, dtype=np.float64))


def estimate(value: ArrayLike, bounds: Bounds | None = None, null: Null | None = None) -> Estimate:
    """Of one number."""
    return _estimated(Estimate, number, value, bounds, null)


def series(values: ArrayLike, bounds: Bounds | None = None, null: Null | None = None) -> Series:
    """Of [n]."""
    return _estimated(Series, numbers, values, bounds, null)


def matrix(values: ArrayLike, bounds: Bounds | None = None, null: Null | None = None) -> Matrix:
    """Of [m, n]."""
    return _estimated(Matrix, rows, values, bounds, null)


def _estimated(
    kind: Callable[..., Kind],
    packed: Callable[[ArrayLike], Shape],
    value: ArrayLike,
    bounds: Bounds | None,
    null: Null | None,
) -> Kind:
    shape = np.shape(value)

    def known(values: ArrayLike | None) -> Shape | None:
        return packed(np.broadcast_to(values, shape)) if values is not None and np.any(np.isfinite(values)) else None

    return kind(
        value=packed(value),
        corrected=known(bounds.corrected) if bounds else None,
        low=known(bounds.low) if bounds else None,
        high=known(bounds.high) if bounds else None,
        null=known(null.value) if null else None,
        null_low=known(null.low) if null else None,
        null_high=known(null.high) if null else None,
        null_method=null.method if null else None,
        p_value=known(null.p_value) if null else None,
        q_value=known(null.q_value) if null else None,
    )


def false_discovery_rates(p_values: ArrayLike) -> NDArray[np.float64]:
    """Benjamini and Hochberg's q over all that are known; NaN where p is."""
    # Takes a second and 100 MB, which those who only read an analysis do without.
    from scipy.stats import false_discovery_control

    p = np.asarray(p_values, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q
