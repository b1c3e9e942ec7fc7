"""One figure of several seeds: an interval over all their documents, and the value of each seed beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.trainer_worker.evaluation.figures import Interval, Totals, interval, resamples

Figure = dict[str, Any]


def pooled(seeds: Sequence[Totals]) -> Totals:
    """The documents of all seeds together."""
    return Totals(
        np.concatenate([one.nats_B for one in seeds]),
        np.concatenate([one.tokens_B for one in seeds]),
        np.concatenate([one.groups_B for one in seeds]),
    )


def mean(seeds: Sequence[Totals]) -> Figure:
    """Mean over domains of the ratio of sums."""
    picks_RB = _picks(seeds)
    return _figure(interval(pooled(seeds).loss(picks_RB)), [_plain(one) for one in seeds])


def difference(first: Sequence[Totals], second: Sequence[Totals]) -> Figure:
    """First minus second on the same documents."""
    picks_RB = _picks(first)
    values_R = pooled(first).loss(picks_RB) - pooled(second).loss(picks_RB)
    return _figure(interval(values_R), [_plain(a) - _plain(b) for a, b in zip(first, second, strict=True)])


def kept(system: Sequence[Totals], base: Sequence[Totals], oracle: Sequence[Totals]) -> Figure:
    """(base - system) / (base - oracle) on the same documents."""
    picks_RB = _picks(system)
    system_R, base_R, oracle_R = (pooled(one).loss(picks_RB) for one in (system, base, oracle))
    seeds = [(_plain(b) - _plain(s)) / (_plain(b) - _plain(o)) for s, b, o in zip(system, base, oracle, strict=True)]
    return _figure(interval((base_R - system_R) / (base_R - oracle_R)), seeds)


def cell(figure: Figure, *, digits: int = 3, signed: bool = False) -> str:
    """`value [low, high]`."""
    sign = "+" if signed else ""
    value, low, high = (f"{figure[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(entry) for entry in line) + " |" for line in lines)


def _picks(seeds: Sequence[Totals]) -> np.ndarray:
    return resamples(pooled(seeds).groups_B)


def _plain(one: Totals) -> float:
    return float(one.loss(np.arange(len(one.groups_B))[None])[0])


def _figure(entry: Interval, seeds: Sequence[float]) -> Figure:
    rounded = (round(value, 5) for value in (entry.value, entry.low, entry.high))
    return dict(zip(("value", "low", "high"), rounded, strict=True)) | {"seeds": [round(value, 5) for value in seeds]}
